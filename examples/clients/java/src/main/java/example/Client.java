// One session from its opening to its close, with a refusal on the way: see ../README.md.
package example;

import com.google.gson.Gson;
import com.google.gson.reflect.TypeToken;
import com.google.protobuf.Any;
import com.google.protobuf.ByteString;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.rpc.ErrorInfo;
import com.google.rpc.QuotaFailure;
import com.google.rpc.RetryInfo;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannel;
import io.grpc.Metadata;
import io.grpc.StatusRuntimeException;
import io.grpc.protobuf.StatusProto;
import io.grpc.stub.MetadataUtils;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.Reader;
import java.nio.charset.StandardCharsets;
import java.util.Map;
import java.util.Objects;
import java.util.TreeMap;
import java.util.UUID;
import roost.v1.SessionServiceGrpc;
import roost.v1.SessionServiceGrpc.SessionServiceBlockingStub;
import roost.v1.SessionServiceOuterClass.CloseSessionRequest;
import roost.v1.SessionServiceOuterClass.OpenSessionRequest;
import roost.v1.TurnServiceGrpc;
import roost.v1.TurnServiceGrpc.TurnServiceBlockingStub;
import roost.v1.TurnServiceOuterClass.BeginTurnRequest;
import roost.v1.TurnServiceOuterClass.BeginTurnResponse;
import roost.v1.TurnServiceOuterClass.CommitTurnRequest;
import roost.v1.TurnServiceOuterClass.Then;
import roost.v1.Types.CloseReason;
import roost.v1.Types.OpenOptions;
import roost.v1.Types.RecordInput;

public final class Client {
  private static final Metadata.Key<String> AUTHORIZATION =
      Metadata.Key.of("authorization", Metadata.ASCII_STRING_MARSHALLER);

  public static void main(String[] arguments) throws IOException {
    if (arguments.length != 1) {
      System.err.println("usage: client ADDRESS");
      System.exit(1);
    }
    Metadata metadata = new Metadata();
    String key = System.getenv("ROOST_API_KEY");
    if (key != null && !key.isEmpty()) {
      metadata.put(AUTHORIZATION, "Bearer " + key);
    }
    ManagedChannel channel =
        Grpc.newChannelBuilder(arguments[0], InsecureChannelCredentials.create())
            .defaultServiceConfig(serviceConfig())
            .disableServiceConfigLookUp() // of what DNS may say instead
            .intercept(MetadataUtils.newAttachHeadersInterceptor(metadata))
            .build();
    int code = 0;
    try {
      run(SessionServiceGrpc.newBlockingStub(channel), TurnServiceGrpc.newBlockingStub(channel));
    } catch (StatusRuntimeException refused) {
      explain(refused);
      code = 1;
    } finally {
      channel.shutdownNow();
    }
    System.exit(code);
  }

  private static void run(SessionServiceBlockingStub sessions, TurnServiceBlockingStub turns)
      throws InvalidProtocolBufferException {
    // Every mutation bears a request_id: with it a repeat, by gRPC or by us, has one effect.
    var opened = sessions.openSession(OpenSessionRequest.newBuilder().setRequestId(fresh()).build());
    String id = opened.getSession().getSessionId();
    System.out.println("opened " + id);

    var begin =
        BeginTurnRequest.newBuilder().setSessionId(id).setRequestId(fresh()).setOwner("example");
    var grant = turns.beginTurn(begin.build()).getGrant();
    System.out.printf("began turn %d, attempt %d%n", grant.getTurn(), grant.getAttempt());

    // A second session, made by its first turn. Where the cap is full it is refused, and nothing was made.
    begin
        .setSessionId(id + ".second")
        .setRequestId(fresh())
        .setOpen(OpenOptions.getDefaultInstance());
    try {
      BeginTurnResponse second = turns.beginTurn(begin.build());
      System.out.println("the server has room for a second turn");
      turns.commitTurn(
          CommitTurnRequest.newBuilder()
              .setSessionId(id + ".second")
              .setRequestId(fresh())
              .setLease(second.getGrant().getLease())
              .setThen(Then.THEN_CLOSE)
              .build());
    } catch (StatusRuntimeException refused) {
      explain(refused);
    }

    var committed =
        turns.commitTurn(
            CommitTurnRequest.newBuilder()
                .setSessionId(id)
                .setRequestId(fresh())
                .setLease(grant.getLease())
                .setRecord(
                    RecordInput.newBuilder()
                        .setContent(ByteString.copyFromUtf8("hello"))
                        .setContentType("text/plain"))
                .build());
    System.out.printf(
        "committed turn %d, head version %d%n", committed.getTurn(), committed.getHeadVersion());

    var closed =
        sessions.closeSession(
            CloseSessionRequest.newBuilder()
                .setSessionId(id)
                .setRequestId(fresh())
                .setReason(CloseReason.CLOSE_REASON_QUIT)
                .build());
    System.out.printf("closed after turn %d%n", closed.getReceipt().getTurnCount());
  }

  /** Prints what a refusal says. Programs branch on the reason, never on the text. */
  private static void explain(StatusRuntimeException refused) throws InvalidProtocolBufferException {
    var status = refused.getStatus();
    System.out.printf("refused: %s: %s%n", status.getCode(), status.getDescription());
    var details = StatusProto.fromThrowable(refused);
    if (details == null) {
      return;
    }
    for (Any detail : details.getDetailsList()) {
      if (detail.is(ErrorInfo.class)) {
        ErrorInfo info = detail.unpack(ErrorInfo.class);
        System.out.println("  reason: " + info.getReason());
        new TreeMap<>(info.getMetadataMap())
            .forEach((name, value) -> System.out.printf("  %s: %s%n", name, value));
      } else if (detail.is(RetryInfo.class)) {
        var delay = detail.unpack(RetryInfo.class).getRetryDelay();
        long ms = delay.getSeconds() * 1000 + delay.getNanos() / 1_000_000;
        System.out.printf("  retry after: %d ms%n", ms);
      } else if (detail.is(QuotaFailure.class)) {
        for (var violation : detail.unpack(QuotaFailure.class).getViolationsList()) {
          System.out.printf(
              "  quota: %s: %s%n", violation.getSubject(), violation.getDescription());
        }
      }
    }
  }

  /** Deadlines, waiting for a server that starts again, and repeats. */
  private static Map<String, ?> serviceConfig() throws IOException {
    try (Reader json =
        new InputStreamReader(
            Objects.requireNonNull(Client.class.getResourceAsStream("/service_config.json")),
            StandardCharsets.UTF_8)) {
      return new Gson().fromJson(json, new TypeToken<Map<String, Object>>() {}.getType());
    }
  }

  private static String fresh() {
    return UUID.randomUUID().toString();
  }
}
