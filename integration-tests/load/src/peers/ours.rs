//! The registry: the very server that this build would ship, as a process of its own.

mod told;

use std::{ffi::OsString, time::Duration};

use bytes::Bytes;
use http::uri::PathAndQuery;
use prost::Message;
use registry_proto::v1::{
    self, KeepAliveRequest, KeepAliveResponse, SubscribeRequest, registry_client::RegistryClient,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Streaming, client::Grpc, transport::Channel};

use super::{Connection, News, Peer, Place, Renewals, Setup, Watch, channel, floor::Raw, service_name};
use crate::{
    failure::{During, Failure, Result},
    process::{Process, Recipe, free_address},
};

/// The tool's argument that makes it our server.
pub(crate) const SERVE: &str = "serve-registry";

/// Our server.
#[derive(Debug)]
pub(crate) struct Ours(Process);

impl Peer for Ours {
    const NAME: &'static str = "ours";
    type Connection = Client;

    async fn start(setup: &Setup) -> Result<Self> {
        let process = Process::start(&setup.directory, |directory| {
            let address = free_address()?;
            let mut arguments: Vec<OsString> =
                [SERVE, "--listen", &address.to_string(), "--data-dir"].map(OsString::from).into();
            arguments.push(directory.join("data").into());
            arguments.extend(["--hold", if setup.hold { "on" } else { "off" }].map(OsString::from));
            let program = std::env::current_exe().during("cannot find this program")?;
            Ok(Recipe { name: Self::NAME, program, arguments, address })
        });
        Ok(Self(process.await?))
    }

    fn process(&self) -> &Process {
        &self.0
    }

    fn process_mut(&mut self) -> &mut Process {
        &mut self.0
    }

    async fn connect(&self) -> Result<Client> {
        let channel = channel(&self.0).await?;
        Ok(Client(RegistryClient::new(channel.clone()), channel))
    }
}

/// A connection to our server.
#[derive(Clone, Debug)]
pub(crate) struct Client(RegistryClient<Channel>, Channel);

impl Connection for Client {
    type Lease = Lease;
    type Renewals = Stream;
    type Watch = View;

    async fn register(&self, place: Place, ttl: Duration) -> Result<Lease> {
        let lease = Lease { id: fastrand::u128(..).to_be_bytes(), registrant: place.instance, ttl };
        self.register_under(place, &lease).await?;
        Ok(lease)
    }

    async fn register_under(&self, place: Place, lease: &Lease) -> Result<()> {
        let instance = v1::Instance { id: place.id(), address: place.address(), ..v1::Instance::default() };
        let request = v1::RegisterRequest {
            lease_id: lease.id.into(),
            registrant: Some(v1::Registrant {
                instance_uid: format!("r-{:08}", lease.registrant),
                generation: 1,
            }),
            ttl: prost_types::Duration::try_from(lease.ttl).ok(),
            registrations: vec![v1::Registration { key: Some(key(place.service)), instance: Some(instance) }],
        };
        self.0.clone().register(request).await.during("ours: Register")?;
        Ok(())
    }

    async fn deregister(&self, place: Place, lease: &Lease) -> Result<()> {
        let instance = v1::InstanceRef { key: Some(key(place.service)), id: place.id(), create_revision: 0 };
        let request = v1::DeregisterRequest {
            lease_id: lease.id.into(),
            instances: vec![instance],
            ..v1::DeregisterRequest::default()
        };
        self.0.clone().deregister(request).await.during("ours: Deregister")?;
        Ok(())
    }

    async fn discover(&self, service: u32) -> Result<usize> {
        let mut instances = 0;
        let mut request = v1::DiscoverRequest { key: Some(key(service)), ..v1::DiscoverRequest::default() };
        loop {
            let page = self.0.clone().discover(request.clone()).await.during("ours: Discover")?.into_inner();
            instances += page.change.map_or(0, |change| change.all.len());
            if page.next_page_token.is_empty() {
                return Ok(instances);
            }
            request.page_token = page.next_page_token;
        }
    }

    async fn renewals(&self) -> Result<Stream> {
        let (requests, sent) = mpsc::channel(1);
        let answers = self.0.clone().keep_alive(ReceiverStream::new(sent)).await.during("ours: KeepAlive")?;
        Ok(Stream { requests, answers: answers.into_inner() })
    }

    async fn watch(&self, service: u32) -> Result<View> {
        let (requests, sent) = mpsc::channel(1);
        let watch = v1::WatchRequest {
            scope: Some(v1::watch_request::Scope::Key(key(service))),
            ..v1::WatchRequest::default()
        };
        let view = v1::SubscribeView { view_id: 1, watch: Some(watch) };
        let subscribe = SubscribeRequest { request: Some(v1::subscribe_request::Request::Subscribe(view)) };
        requests.try_send(subscribe.encode_to_vec().into()).during("a new queue has room")?;
        let mut grpc = Grpc::new(self.1.clone());
        grpc.ready().await.during("ours is out of reach")?;
        let path = PathAndQuery::from_static("/registry.v1.Registry/Subscribe");
        let changes = grpc.streaming(Request::new(ReceiverStream::new(sent)), path, Raw).await;
        Ok(View { changes: changes.during("ours: Subscribe")?.into_inner(), _requests: requests })
    }
}

/// A lease, and what its registrant says of itself.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lease {
    id: [u8; 16],
    registrant: u32,
    ttl: Duration,
}

/// A `KeepAlive` stream.
#[derive(Debug)]
pub(crate) struct Stream {
    requests: mpsc::Sender<KeepAliveRequest>,
    answers: Streaming<KeepAliveResponse>,
}

impl Renewals<Lease> for Stream {
    const AT_ONCE: usize = 10_000;

    async fn renew(&mut self, leases: &[Lease]) -> Result<()> {
        let lease_ids = leases.iter().map(|lease| lease.id.to_vec()).collect();
        let request = KeepAliveRequest { lease_ids, request_id: 0 };
        self.requests.send(request).await.during("ours: KeepAlive has ended")?;
        let answer = self.answers.message().await.during("ours: KeepAlive")?;
        match answer {
            Some(answer) if answer.exceptions.is_empty() => Ok(()),
            Some(answer) => {
                Err(Failure(format!("ours: {} leases were not renewed", answer.exceptions.len())))
            }
            None => Err(Failure("ours: KeepAlive has ended".to_owned())),
        }
    }
}

/// A `Subscribe` stream with one view.
#[derive(Debug)]
pub(crate) struct View {
    changes: Streaming<Bytes>,
    /// Kept: a client that says it has nothing more to ask may be leaving.
    _requests: mpsc::Sender<Bytes>,
}

impl Watch for View {
    async fn next(&mut self, news: &mut Vec<News>) -> Result<()> {
        let message = self.changes.message().await.during("ours: a watch failed")?;
        let message = message.ok_or_else(|| Failure("ours: a watch has ended".to_owned()))?;
        told::read(&message, news).during("ours: a watch says something that is no message")
    }
}

fn key(service: u32) -> v1::ServiceKey {
    v1::ServiceKey { namespace: String::new(), service: service_name(service) }
}
