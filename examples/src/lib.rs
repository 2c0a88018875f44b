//! What the examples share: a greeter service, and how to stop one. The stories are in `src/bin`.
//!
//! | run `cargo run -p examples --bin` … | and see |
//! |---|---|
//! | `greeter` | a service that registers itself, and drains on Ctrl-C or SIGTERM |
//! | `caller` | calls spread over the greeters that are registered right now |
//! | `watch -- greeter` | greeters come, change and go |
//! | `custom_discover` | instances that come from a file: a [`Discover`](client_sdk::discover::Discover) of one's own |
//! | `custom_load_balance` | a primary and its stand-in: a [`LoadBalance`](client_sdk::balance::LoadBalance) of one's own |
//! | `custom_policy` | calls that stay in the caller's zone: a [`Policy`](client_sdk::balance::Policy) of one's own |
//! | `aperture` | a [channel](client_sdk::channel) that uses as many instances as the demand asks for |
//! | `http1` | hyper's HTTP/1 client over two servers: any tower service, [balanced](client_sdk::layer::LoadBalanceLayer) |
//! | `autoscale` | worker processes that register themselves, started and stopped by a [pool](client_sdk::pool) as calls need them |
//! | `demo` | all of it at once, in separate processes that are killed and restarted |
//!
//! `custom_discover`, `custom_load_balance`, `custom_policy`, `aperture`, `http1`, `autoscale` and `demo` need nothing else to run; the others need a registry.

mod local;

use std::{future::Future, io, time::Duration};

use tonic::{Request, Response, Status};

pub use local::LocalGreeter;

/// The messages of `greeter.v1`, its client and its server, as generated.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic)]
pub mod proto {
    tonic::include_proto!("greeter.v1");
}

/// A greeter that says its name in every answer.
#[derive(Clone, Debug)]
pub struct NamedGreeter {
    /// Its name.
    pub name: String,
    /// How long an answer takes.
    pub takes: Duration,
}

#[tonic::async_trait]
impl proto::greeter_server::Greeter for NamedGreeter {
    async fn greet(
        &self,
        request: Request<proto::GreetRequest>,
    ) -> Result<Response<proto::GreetResponse>, Status> {
        tokio::time::sleep(self.takes).await;
        let text = format!("hello {}, this is {}", request.into_inner().name, self.name);
        Ok(Response::new(proto::GreetResponse { text, answered_by: self.name.clone() }))
    }
}

/// Resolves at SIGTERM or Ctrl-C. Listens for them from the call on, not from the first poll on.
pub fn stop_signal() -> io::Result<impl Future<Output = ()> + Send + 'static> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}
