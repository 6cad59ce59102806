//! What the service config says, done by hand: tonic reads none. A call gets the time-out of its method, and is
//! repeated where the config allows it, until that time is over: so it waits for a server that starts again, too.

use std::{collections::HashMap, error::Error, time::Duration};

use serde::Deserialize;
use tonic::{Code, Request, Response, Status};

const CONFIG: &str = include_str!("../../../../proto/roost/v1/service_config.json");

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ServiceConfig {
    method_config: Vec<MethodConfig>,
}

#[derive(Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct MethodConfig {
    name: Vec<Name>,
    timeout: Option<String>,
    retry_policy: Option<RetryPolicy>,
}

#[derive(Clone, Deserialize)]
struct Name {
    service: String,
    #[serde(default)]
    method: String,
}

#[derive(Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RetryPolicy {
    initial_backoff: String,
    max_backoff: String,
    backoff_multiplier: f64,
    retryable_status_codes: Vec<String>,
}

/// The config of each method; of a service under an empty method.
pub struct Policy(HashMap<(String, String), MethodConfig>);

impl Policy {
    pub fn new() -> Self {
        let config: ServiceConfig = serde_json::from_str(CONFIG).expect("the config is checked with the protos");
        let entries = config.method_config.into_iter();
        Self(
            entries
                .flat_map(|entry| {
                    let names = entry.name.clone();
                    names.into_iter().map(move |name| ((name.service, name.method), entry.clone()))
                })
                .collect(),
        )
    }

    /// Makes one call, again and again where that is sound. `message` bears its request_id, so that all have one effect.
    pub async fn call<M: Clone, A>(
        &self,
        service: &str,
        method: &str,
        message: M,
        mut invoke: impl AsyncFnMut(Request<M>) -> Result<Response<A>, Status>,
    ) -> Result<A, Status> {
        let entry = self.0.get(&(service.into(), method.into())).or_else(|| self.0.get(&(service.into(), "".into())));
        let timeout = entry.and_then(|entry| entry.timeout.as_deref()).map_or(Duration::MAX, seconds);
        let retry = entry.and_then(|entry| entry.retry_policy.as_ref());
        let mut backoff = retry.map_or(Duration::ZERO, |retry| seconds(&retry.initial_backoff));
        let start = tokio::time::Instant::now();
        loop {
            let mut request = Request::new(message.clone());
            if timeout < Duration::MAX {
                request.set_timeout(timeout.saturating_sub(start.elapsed()));
            }
            let refused = match invoke(request).await {
                Ok(answer) => return Ok(answer.into_inner()),
                Err(status) => status,
            };
            // What the server says of when to come again goes before what the policy says; less than nothing: never.
            let told =
                refused.metadata().get("grpc-retry-pushback-ms").and_then(|ms| ms.to_str().ok()?.parse::<i64>().ok());
            let wait = told.map_or(Some(backoff), |ms| u64::try_from(ms).ok().map(Duration::from_millis));
            match (retry, wait) {
                (Some(retry), Some(wait)) if retry.allows(&refused) && start.elapsed() + wait < timeout => {
                    tokio::time::sleep(wait).await;
                    backoff = backoff.mul_f64(retry.backoff_multiplier).min(seconds(&retry.max_backoff));
                }
                _ => return Err(refused),
            }
        }
    }
}

impl RetryPolicy {
    fn allows(&self, refused: &Status) -> bool {
        // Where a connection breaks under a call, other implementations say UNAVAILABLE; tonic says one of these, with
        // the error that it met. What a server answers has none.
        let broken =
            refused.source().is_some() && matches!(refused.code(), Code::Unknown | Code::Cancelled | Code::Internal);
        broken || self.retryable_status_codes.iter().any(|name| *name == crate::name(refused.code()))
    }
}

/// "0.2s", as JSON writes a google.protobuf.Duration.
fn seconds(text: &str) -> Duration {
    Duration::from_secs_f64(text.trim_end_matches('s').parse().expect("a number of seconds"))
}
