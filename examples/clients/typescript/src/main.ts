// One session from its opening to its close, with a refusal on the way: see ../../README.md.

import { randomUUID } from "node:crypto";

import {
  type ClientOptions,
  InterceptingCall,
  type Interceptor,
  type ServiceError,
  credentials,
  status,
} from "@grpc/grpc-js";
import { ErrorInfo, QuotaFailure, RetryInfo } from "nice-grpc-error-details";
import { Status } from "nice-grpc-error-details/lib/proto/google/rpc/status.js";

import serviceConfig from "../gen/service_config.json" with { type: "json" };
import {
  CloseSessionRequest,
  type CloseSessionResponse,
  OpenSessionRequest,
  type OpenSessionResponse,
  SessionServiceClient,
} from "../gen/roost/v1/session_service.js";
import {
  BeginTurnRequest,
  type BeginTurnResponse,
  CommitTurnRequest,
  type CommitTurnResponse,
  Then,
  TurnServiceClient,
} from "../gen/roost/v1/turn_service.js";
import { CloseReason } from "../gen/roost/v1/types.js";

/** The answer of a call that tells it to a callback. */
function answer<T>(start: (done: (error: ServiceError | null, answer: T) => void) => unknown): Promise<T> {
  return new Promise((resolve, reject) => start((error, told) => (error ? reject(error) : resolve(told))));
}

/** Has each call wait for the server, which grpc-js does not take from the service config, and bear the API key. */
const withMetadata: Interceptor = (options, nextCall) =>
  new InterceptingCall(nextCall(options), {
    start(metadata, listener, next) {
      metadata.setOptions({ ...metadata.getOptions(), waitForReady: true });
      const key = process.env.ROOST_API_KEY;
      if (key) metadata.set("authorization", `Bearer ${key}`);
      next(metadata, listener);
    },
  });

async function run(sessions: SessionServiceClient, turns: TurnServiceClient): Promise<void> {
  // Every mutation bears a request_id: with it a repeat, by gRPC or by us, has one effect.
  const opened = await answer<OpenSessionResponse>((done) =>
    sessions.openSession(OpenSessionRequest.create({ requestId: randomUUID() }), done),
  );
  const sessionId = opened.session!.sessionId;
  console.log(`opened ${sessionId}`);

  const begin = BeginTurnRequest.create({ sessionId, requestId: randomUUID(), owner: "example" });
  const { grant } = await answer<BeginTurnResponse>((done) => turns.beginTurn(begin, done));
  console.log(`began turn ${grant!.turn}, attempt ${grant!.attempt}`);

  // A second session, made by its first turn. Where the cap is full it is refused, and nothing was made.
  const secondId = `${sessionId}.second`;
  const second = BeginTurnRequest.create({ sessionId: secondId, requestId: randomUUID(), owner: "example", open: {} });
  const begun = await answer<BeginTurnResponse>((done) => turns.beginTurn(second, done)).catch(explain);
  if (begun) {
    console.log("the server has room for a second turn");
    const lease = begun.grant!.lease;
    const commit = { sessionId: secondId, requestId: randomUUID(), lease, then: Then.THEN_CLOSE };
    await answer<CommitTurnResponse>((done) => turns.commitTurn(CommitTurnRequest.create(commit), done));
  }

  const commit = CommitTurnRequest.create({
    sessionId,
    requestId: randomUUID(),
    lease: grant!.lease,
    record: { content: Buffer.from("hello"), contentType: "text/plain" },
  });
  const committed = await answer<CommitTurnResponse>((done) => turns.commitTurn(commit, done));
  console.log(`committed turn ${committed.turn}, head version ${committed.headVersion}`);

  const close = { sessionId, requestId: randomUUID(), reason: CloseReason.CLOSE_REASON_QUIT };
  const closed = await answer<CloseSessionResponse>((done) =>
    sessions.closeSession(CloseSessionRequest.create(close), done),
  );
  console.log(`closed after turn ${closed.receipt!.turnCount}`);
}

/** Prints what a refusal says. Programs branch on the reason, never on the text. */
function explain(error: ServiceError): void {
  console.log(`refused: ${status[error.code]}: ${error.details}`);
  const [encoded] = error.metadata.get("grpc-status-details-bin");
  if (!(encoded instanceof Buffer)) return;
  for (const { typeUrl, value } of Status.decode(encoded).details) {
    switch (typeUrl) {
      case "type.googleapis.com/google.rpc.ErrorInfo": {
        const info = ErrorInfo.decode(value);
        console.log(`  reason: ${info.reason}`);
        for (const name of Object.keys(info.metadata).sort()) console.log(`  ${name}: ${info.metadata[name]}`);
        break;
      }
      case "type.googleapis.com/google.rpc.RetryInfo": {
        const delay = RetryInfo.decode(value).retryDelay;
        console.log(`  retry after: ${(delay?.seconds ?? 0) * 1000 + Math.floor((delay?.nanos ?? 0) / 1e6)} ms`);
        break;
      }
      case "type.googleapis.com/google.rpc.QuotaFailure":
        for (const violation of QuotaFailure.decode(value).violations) {
          console.log(`  quota: ${violation.subject}: ${violation.description}`);
        }
        break;
    }
  }
}

async function main(target?: string, ...more: string[]): Promise<void> {
  if (!target || more.length > 0) {
    console.error("usage: client ADDRESS");
    process.exitCode = 1;
    return;
  }
  const options: ClientOptions = {
    // Deadlines and repeats; not what DNS may say instead.
    "grpc.service_config": JSON.stringify(serviceConfig),
    "grpc.service_config_disable_resolution": 1,
    interceptors: [withMetadata],
  };
  const sessions = new SessionServiceClient(target, credentials.createInsecure(), options);
  const turns = new TurnServiceClient(target, credentials.createInsecure(), options);
  try {
    await run(sessions, turns);
  } catch (error) {
    explain(error as ServiceError);
    process.exitCode = 1;
  } finally {
    sessions.close();
    turns.close();
  }
}

await main(...process.argv.slice(2));
