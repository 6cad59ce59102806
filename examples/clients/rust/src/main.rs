//! One session from its opening to its close, with a refusal on the way: see ../../README.md.

mod policy;

use std::{env, process::ExitCode};

use policy::Policy;
use roost::{
    BeginTurnRequest, CloseReason, CloseSessionRequest, CommitTurnRequest, OpenOptions, OpenSessionRequest,
    RecordInput, Then, session_service_client::SessionServiceClient, turn_service_client::TurnServiceClient,
};
use tonic::{
    Code, Request, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Channel, Endpoint},
};
use tonic_types::StatusExt;

/// Written by build.rs.
#[allow(clippy::all)]
mod roost {
    tonic::include_proto!("roost.v1");
}

const SESSIONS: &str = "roost.v1.SessionService";
const TURNS: &str = "roost.v1.TurnService";

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let mut arguments = env::args().skip(1);
    let (Some(address), None) = (arguments.next(), arguments.next()) else {
        eprintln!("usage: client ADDRESS");
        return ExitCode::FAILURE;
    };
    let endpoint = match Endpoint::from_shared(format!("http://{address}")) {
        Ok(endpoint) => endpoint,
        Err(error) => {
            eprintln!("{address}: {error}");
            return ExitCode::FAILURE;
        }
    };
    let key = match env::var("ROOST_API_KEY") {
        Ok(key) if !key.is_empty() => match format!("Bearer {key}").parse() {
            Ok(value) => Some(value),
            Err(_) => {
                eprintln!("ROOST_API_KEY is not an API key");
                return ExitCode::FAILURE;
            }
        },
        _ => None,
    };
    let channel = InterceptedService::new(endpoint.connect_lazy(), Key(key));
    match run(SessionServiceClient::new(channel.clone()), TurnServiceClient::new(channel)).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(refused) => {
            explain(&refused);
            ExitCode::FAILURE
        }
    }
}

type Connection = InterceptedService<Channel, Key>;

async fn run(
    mut sessions: SessionServiceClient<Connection>,
    mut turns: TurnServiceClient<Connection>,
) -> Result<(), Status> {
    let policy = Policy::new();

    // Every mutation bears a request_id: with it a repeat has one effect.
    let request = OpenSessionRequest { request_id: fresh(), ..Default::default() };
    let opened = policy.call(SESSIONS, "OpenSession", request, async |r| sessions.open_session(r).await).await?;
    let id = opened.session.unwrap_or_default().session_id;
    println!("opened {id}");

    let request =
        BeginTurnRequest { session_id: id.clone(), request_id: fresh(), owner: "example".into(), ..Default::default() };
    let begun = policy.call(TURNS, "BeginTurn", request, async |r| turns.begin_turn(r).await).await?;
    let grant = begun.grant.unwrap_or_default();
    println!("began turn {}, attempt {}", grant.turn, grant.attempt);

    // A second session, made by its first turn. Where the cap is full it is refused, and nothing was made.
    let request = BeginTurnRequest {
        session_id: format!("{id}.second"),
        request_id: fresh(),
        owner: "example".into(),
        open: Some(OpenOptions::default()),
        ..Default::default()
    };
    match policy.call(TURNS, "BeginTurn", request, async |r| turns.begin_turn(r).await).await {
        Ok(second) => {
            println!("the server has room for a second turn");
            let request = CommitTurnRequest {
                session_id: format!("{id}.second"),
                request_id: fresh(),
                lease: second.grant.unwrap_or_default().lease,
                then: Then::Close.into(),
                ..Default::default()
            };
            policy.call(TURNS, "CommitTurn", request, async |r| turns.commit_turn(r).await).await?;
        }
        Err(refused) => explain(&refused),
    }

    let request = CommitTurnRequest {
        session_id: id.clone(),
        request_id: fresh(),
        lease: grant.lease,
        record: Some(RecordInput { content: "hello".into(), content_type: "text/plain".into(), ..Default::default() }),
        ..Default::default()
    };
    let committed = policy.call(TURNS, "CommitTurn", request, async |r| turns.commit_turn(r).await).await?;
    println!("committed turn {}, head version {}", committed.turn, committed.head_version);

    let request = CloseSessionRequest { session_id: id, request_id: fresh(), reason: CloseReason::Quit.into() };
    let closed = policy.call(SESSIONS, "CloseSession", request, async |r| sessions.close_session(r).await).await?;
    println!("closed after turn {}", closed.receipt.unwrap_or_default().turn_count);
    Ok(())
}

/// Sends the API key, if there is one, with each call.
#[derive(Clone)]
struct Key(Option<MetadataValue<Ascii>>);

impl Interceptor for Key {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(key) = &self.0 {
            request.metadata_mut().insert("authorization", key.clone());
        }
        Ok(request)
    }
}

fn fresh() -> String {
    uuid::Uuid::new_v4().to_string()
}

/// Prints what a refusal says. Programs branch on the reason, never on the text.
fn explain(refused: &Status) {
    println!("refused: {}: {}", name(refused.code()), refused.message());
    let details = refused.get_error_details();
    if let Some(info) = details.error_info() {
        println!("  reason: {}", info.reason);
        let mut metadata: Vec<_> = info.metadata.iter().collect();
        metadata.sort();
        for (name, value) in metadata {
            println!("  {name}: {value}");
        }
    }
    if let Some(delay) = details.retry_info().and_then(|info| info.retry_delay) {
        println!("  retry after: {} ms", delay.as_millis());
    }
    for violation in details.quota_failure().into_iter().flat_map(|quota| &quota.violations) {
        println!("  quota: {}: {}", violation.subject, violation.description);
    }
}

/// RESOURCE_EXHAUSTED, where Debug says ResourceExhausted.
fn name(code: Code) -> String {
    let mut name = String::new();
    for letter in format!("{code:?}").chars() {
        if letter.is_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(letter.to_ascii_uppercase());
    }
    name
}
