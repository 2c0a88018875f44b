//! Health servers without a network that do what the test says, on its own time, and remember what they were asked.

use std::{
    collections::HashMap,
    io,
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use client_sdk::{
    channel::{BalancedChannel, ChannelBuilder},
    model::{Address, Instance, InstanceBuilder},
    orca::LoadReportLayer,
    runtime::{BoxFuture, Connect, Io, Runtime, TokioClock, TokioSpawn},
};
use tokio::{
    io::DuplexStream,
    sync::{Notify, Semaphore},
};
use tokio_stream::Stream;
use tonic::{
    Code, Request, Response, Status, Streaming, metadata::MetadataMap,
    service::interceptor::InterceptedService, transport::Server,
};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse,
    health_client::HealthClient,
    health_server::{Health, HealthServer},
};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, ServerReflectionResponse,
    server_reflection_server::{ServerReflection, ServerReflectionServer},
};

use crate::{builder, kit::Fleet};

/// What a host does with a call.
#[derive(Clone, Debug)]
pub(crate) enum Does {
    Serves,
    /// Answers so long after it was asked.
    Late(Duration),
    /// Answers this and nothing else, with a word on another attempt.
    Refuses(Code, Option<&'static str>),
    /// Answers this, whatever comes with the call and after it.
    TurnsAway(Code),
    /// Begins to answer, and then ends with this.
    Stops(Code),
    /// `NOT_FOUND`, with a report of its load that cannot be read.
    Misreports,
    /// Never answers.
    Hangs,
    /// Breaks its connections.
    Breaks,
}

/// One host.
pub(crate) struct Host {
    name: &'static str,
    does: Mutex<Does>,
    /// What came with each call.
    asked: Mutex<Vec<MetadataMap>>,
    arrived: Semaphore,
    broken: Notify,
    reports: Option<LoadReportLayer>,
}

/// All hosts, and how to connect to them.
pub(crate) struct Stage {
    pub(crate) runtime: Runtime,
    pub(crate) fleet: Fleet,
    hosts: Hosts,
}

type Hosts = Arc<Mutex<HashMap<Address, Arc<Host>>>>;

struct Inside(Hosts);

impl Connect for Inside {
    fn connect<'a>(&'a self, address: &'a Address) -> BoxFuture<'a, io::Result<Box<dyn Io>>> {
        let host = Arc::clone(&self.0.lock().expect("no panic")[address]);
        Box::pin(async move {
            let (near, mut between) = tokio::io::duplex(1 << 16);
            let (mut beyond, far) = tokio::io::duplex(1 << 16);
            tokio::spawn(serve(Arc::clone(&host), far));
            tokio::spawn(async move {
                tokio::select! {
                    _ = tokio::io::copy_bidirectional(&mut between, &mut beyond) => {}
                    () = host.broken.notified() => {}
                }
            });
            Ok(Box::new(near) as Box<dyn Io>)
        })
    }
}

async fn serve(host: Arc<Host>, far: DuplexStream) {
    use tokio_stream::StreamExt;
    // Its listener never ends, or it would say goodbye.
    let incoming = tokio_stream::once(Ok::<_, io::Error>(far)).chain(tokio_stream::pending());
    let health = HealthServer::from_arc(Arc::clone(&host));
    let door = Arc::clone(&host);
    let reflection = InterceptedService::new(
        ServerReflectionServer::from_arc(Arc::clone(&host)),
        move |request: Request<()>| {
            door.asked.lock().expect("no panic").push(request.metadata().clone());
            door.arrived.add_permits(1);
            match *door.does.lock().expect("no panic") {
                Does::TurnsAway(code) => Err(Status::new(code, format!("{} turns away", door.name))),
                _ => Ok(request),
            }
        },
    );
    let served = match &host.reports {
        Some(layer) => {
            Server::builder().layer(layer.clone()).add_service(health).serve_with_incoming(incoming).await
        }
        None => {
            Server::builder().add_service(health).add_service(reflection).serve_with_incoming(incoming).await
        }
    };
    served.expect("serves");
}

impl Stage {
    /// Hosts with these names, all in the view, in this order.
    pub(crate) fn of(names: &[&'static str]) -> Self {
        Self::reporting(names, |_| None)
    }

    /// As [`of`](Self::of); those for whom there is a layer report their load.
    pub(crate) fn reporting(
        names: &[&'static str],
        reports: impl Fn(&Runtime) -> Option<LoadReportLayer>,
    ) -> Self {
        let hosts = Hosts::default();
        let runtime = Runtime::new(TokioClock::default(), Inside(Arc::clone(&hosts)), TokioSpawn, 7);
        for name in names {
            let host = Host {
                name,
                does: Mutex::new(Does::Serves),
                asked: Mutex::default(),
                arrived: Semaphore::new(0),
                broken: Notify::new(),
                reports: reports(&runtime),
            };
            hosts.lock().expect("no panic").insert(address(name), Arc::new(host));
        }
        let fleet = Fleet::of(names.iter().map(|name| instance(name)));
        Self { runtime, fleet, hosts }
    }

    pub(crate) fn builder(&self) -> ChannelBuilder<Fleet> {
        builder(&self.fleet).runtime(self.runtime.clone())
    }

    pub(crate) fn host(&self, name: &str) -> Arc<Host> {
        Arc::clone(&self.hosts.lock().expect("no panic")[&address(name)])
    }

    /// How often each host was asked, by their names.
    pub(crate) fn asked(&self) -> Vec<(&'static str, usize)> {
        let hosts = self.hosts.lock().expect("no panic");
        let mut asked: Vec<_> =
            hosts.values().map(|host| (host.name, host.asked().len())).filter(|(_, n)| *n > 0).collect();
        asked.sort_unstable();
        asked
    }
}

fn address(name: &str) -> Address {
    format!("{name}:1").parse().expect("valid")
}

fn instance(name: &str) -> InstanceBuilder {
    Instance::builder(address(name)).id(name)
}

impl Host {
    pub(crate) fn does(&self, does: Does) {
        *self.does.lock().expect("no panic") = does;
    }

    /// Breaks its connections now.
    pub(crate) fn breaks(&self) {
        self.broken.notify_waiters();
    }

    /// What came with each call.
    pub(crate) fn asked(&self) -> Vec<MetadataMap> {
        self.asked.lock().expect("no panic").clone()
    }

    /// Waits for a call.
    pub(crate) async fn arrived(&self) {
        self.arrived.acquire().await.expect("never closed").forget();
    }

    pub(crate) fn reports(&self) -> &LoadReportLayer {
        self.reports.as_ref().expect("it reports")
    }

    async fn act<T>(&self, request: &Request<HealthCheckRequest>, answer: T) -> Result<Response<T>, Status> {
        self.asked.lock().expect("no panic").push(request.metadata().clone());
        self.arrived.add_permits(1);
        let does = self.does.lock().expect("no panic").clone();
        match does {
            Does::Serves | Does::Stops(_) | Does::TurnsAway(_) => {}
            Does::Late(after) => tokio::time::sleep(after).await,
            Does::Hangs => std::future::pending().await,
            Does::Breaks => {
                self.breaks();
                std::future::pending::<()>().await;
            }
            Does::Misreports => {
                let mut status = Status::not_found(format!("{} misreports", self.name));
                let garbage = tonic::metadata::BinaryMetadataValue::from_bytes(&[0xff]);
                status.metadata_mut().insert_bin("endpoint-load-metrics-bin", garbage);
                return Err(status);
            }
            Does::Refuses(code, pushback) => {
                let mut status = Status::new(code, format!("{} refuses", self.name));
                if let Some(word) = pushback {
                    status.metadata_mut().insert("grpc-retry-pushback-ms", word.parse().expect("ascii"));
                }
                return Err(status);
            }
        }
        let mut response = Response::new(answer);
        response.metadata_mut().insert("who", self.name.parse().expect("ascii"));
        Ok(response)
    }
}

#[tonic::async_trait]
impl Health for Host {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        self.act(&request, HealthCheckResponse { status: 1 }).await
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    /// One answer, if it serves; then the end.
    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let does = self.does.lock().expect("no panic").clone();
        let answers = match does {
            Does::Stops(code) => vec![Err(Status::new(code, format!("{} stops", self.name)))],
            _ => vec![Ok(HealthCheckResponse { status: 1 })],
        };
        self.act(&request, Box::pin(tokio_stream::iter(answers)) as Self::WatchStream).await
    }
}

#[tonic::async_trait]
impl ServerReflection for Host {
    type ServerReflectionInfoStream =
        Pin<Box<dyn Stream<Item = Result<ServerReflectionResponse, Status>> + Send>>;

    /// Echoes each request's host, and says who it is.
    async fn server_reflection_info(
        &self,
        request: Request<Streaming<ServerReflectionRequest>>,
    ) -> Result<Response<Self::ServerReflectionInfoStream>, Status> {
        use tokio_stream::StreamExt;
        let name = self.name;
        let echo = request.into_inner().map(move |request| {
            let echo = |request: ServerReflectionRequest| format!("{name} heard {}", request.host);
            request
                .map(|request| ServerReflectionResponse { valid_host: echo(request), ..Default::default() })
        });
        Ok(Response::new(Box::pin(echo)))
    }
}

/// Who answers a unary call.
pub(crate) async fn ask(channel: &BalancedChannel) -> Result<String, Status> {
    ask_with(channel, Request::new(HealthCheckRequest::default())).await
}

pub(crate) async fn ask_with(
    channel: &BalancedChannel,
    request: Request<HealthCheckRequest>,
) -> Result<String, Status> {
    let response = HealthClient::new(channel.clone()).check(request).await?;
    Ok(response.metadata().get("who").expect("said").to_str().expect("ascii").to_owned())
}
