//! Wires the rooms and joins them again: `run(config, incoming, runtime, shutdown)`, and `run_on(store, ..)` for whoever
//! brings a store of his own, on a simulated disk for example.
//!
//! ```text
//!  shutdown ─► health NOT_SERVING, streams are asked to go, new ones refused; calls go on ──┐  all within `grace`
//!      ┌─────────────── no stream is left, or all were to have left ◄───────────────────────┘
//!      └─► no new connections or calls, those in flight end ─► writer ends ─► return
//! ```
//!
//! Watchers and registrants leave one by one, over half of the grace period, while the server still takes their calls and
//! renewals: so the time in which nobody answers, until another server or this one's successor does, is short. Nothing
//! expires meanwhile, for renewals of those who have left find nobody (L1).
//! What was acknowledged is on disk before the answer, so stopping loses nothing at whatever point it is cut short.

mod config;
mod connection;
mod health;
mod listener;

use std::{future::Future, io, sync::Arc, time::Duration};

use registry_proto::FILE_DESCRIPTOR_SET;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::watch,
    time::{sleep, timeout},
};
use tokio_stream::Stream;
use tonic::service::Routes;
use tracing::{info, warn};

pub use self::config::{Config, Storage};
use crate::{
    core::{Settings, State},
    grpc::{Calls, RegistryService, leave_margin},
    hub::LogLimits,
    registry::{Registry, Started},
    runtime::Runtime,
    store::{EmbeddedOptions, EmbeddedStore, Fold, MemoryStore, Store, StoreError},
};

/// A request of 4 MiB, which is what the protocol allows, and room to say that a larger one is too large.
const MAX_DECODED: usize = 8 << 20;
/// A client that does not answer a ping this long after it is gone.
const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// A client is asked this often whether it is there, and has greeted by then.
const PING_INTERVAL: Duration = Duration::from_secs(20);
/// A client that has not greeted is waited for so long when the server closes.
const GREETS_WHEN_CLOSING: Duration = Duration::from_secs(1);
/// Calls and streams on one connection.
const MAX_STREAMS_PER_CONNECTION: u32 = 10_000;

/// Why the server could not run.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The store cannot be used.
    #[error("cannot use the {storage} store: {source}")]
    Store {
        /// Which.
        storage: Storage,
        /// Why.
        source: StoreError,
    },
    /// The descriptors for reflection are broken.
    #[error("cannot offer reflection: {0}")]
    Reflection(String),
}

/// Runs a server over `incoming` connections until `shutdown` resolves, and then until all is ended.
///
/// `started` is called once requests are served, with what was loaded.
pub async fn run<I, C>(
    config: Config,
    incoming: I,
    runtime: Runtime,
    shutdown: impl Future<Output = ()> + Send + 'static,
    started: impl FnOnce(&Started) + Send,
) -> Result<(), ServerError>
where
    I: Stream<Item = io::Result<C>> + Send + 'static,
    C: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let storage = config.storage;
    let store = open(&config, &runtime).map_err(|source| ServerError::Store { storage, source })?;
    run_on(store, config, incoming, runtime, shutdown, started).await
}

/// As [`run`], on a store of one's own: `config.storage` then only names it, in errors, and `config.data_dir` nothing.
pub async fn run_on<I, C>(
    store: Box<dyn Store>,
    config: Config,
    incoming: I,
    runtime: Runtime,
    shutdown: impl Future<Output = ()> + Send + 'static,
    started: impl FnOnce(&Started) + Send,
) -> Result<(), ServerError>
where
    I: Stream<Item = io::Result<C>> + Send + 'static,
    C: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let storage = config.storage;
    let store_error = |source| ServerError::Store { storage, source };
    let (registry, found, writer) =
        Registry::start(store, config.core.clone(), config.hub.clone(), &runtime).map_err(store_error)?;

    let (stopping, is_stopping) = watch::channel(None);
    let (closing, is_closing) = watch::channel(false);
    let service = RegistryService::new(registry.clone(), config.grpc, runtime.clone(), is_stopping.clone());
    let (health, health_task) = health::serve(&registry, is_stopping, is_closing.clone(), &runtime);
    let streams = service.clone();
    let hub = registry.hub().clone();
    let waking = runtime.spawn(async move { hub.wake_streams().await });
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()
        .map_err(|error| ServerError::Reflection(error.to_string()))?;

    let spread = config.grace / 2;
    let mut told = is_closing;
    let calls = Calls::new(service, MAX_DECODED, Routes::new(health).add_service(reflection));
    let answer = move |request| calls.answer(request);
    let serving = listener::serve(incoming, answer, runtime.clone(), async move {
        // An error means that this function is gone, and the server with it.
        let _ = told.wait_for(|closing| *closing).await;
    });
    started(&found);

    let mut serving = std::pin::pin!(serving);
    let mut shutdown = std::pin::pin!(shutdown);
    tokio::select! {
        biased;
        () = &mut serving => {}
        () = &mut shutdown => {
            info!("shutting down: watchers and registrants are asked to go elsewhere");
            stopping.send_replace(Some(spread));
            let ending = async {
                registry.suspend_expiry().await;
                tokio::select! {
                    biased;
                    () = streams.streams_ended() => {}
                    () = sleep(spread + leave_margin(spread)) => {}
                    // Nobody can come any more.
                    () = &mut serving => return,
                }
                info!("closing: calls in flight end, no new ones are taken");
                closing.send_replace(true);
                (&mut serving).await;
            };
            if timeout(config.grace, ending).await.is_err() {
                warn!(grace = ?config.grace, "some calls did not end in time and are cut off");
            }
        }
    }
    drop((registry, streams));
    health_task.abort();
    waking.abort();
    writer.stop().await;
    info!("stopped");
    Ok(())
}

/// Folds old records into a base, the same way in which a registry with these settings applied them: what an
/// [`EmbeddedStore`] is to be opened with.
pub fn fold(settings: &Settings) -> Fold {
    let remembered = settings.remembered_services;
    Arc::new(move |base, records| {
        let mut state = State::from_base(base).with_remembered(remembered);
        for committed in records {
            state.evolve(&committed);
        }
        state.to_base()
    })
}

fn open(config: &Config, runtime: &Runtime) -> Result<Box<dyn Store>, StoreError> {
    let new_epoch = runtime.random_u128();
    Ok(match config.storage {
        Storage::Memory => {
            warn!("--storage memory keeps nothing: all registrations are gone when this process ends");
            Box::new(MemoryStore::new(new_epoch))
        }
        Storage::Embedded => {
            let LogLimits { count, age, bytes } = config.hub.log;
            let options = EmbeddedOptions {
                segment_bytes: config.segment_bytes,
                history_records: u64::try_from(count).unwrap_or(u64::MAX),
                history_age: age,
                history_bytes: u64::try_from(bytes).unwrap_or(u64::MAX),
                ..EmbeddedOptions::new(fold(&config.core), new_epoch)
            };
            Box::new(EmbeddedStore::open(&config.data_dir, options)?)
        }
    })
}
