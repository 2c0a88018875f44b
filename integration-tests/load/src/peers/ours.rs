//! The registry: the very server that this build would ship, as a process of its own.

mod told;

use std::{ffi::OsString, time::Duration};

use bytes::Bytes;
use registry_proto::v1::{self, KeepAliveRequest, KeepAliveResponse, SubscribeRequest};

use super::{
    Connection, News, Peer, Place, Renewals, Setup, Watch,
    grpc::{Answers, Channel, Feed, Requests, frame},
    service_name,
};
use crate::{
    failure::{During, Failure, Result},
    process::{Process, Recipe, free_address},
};

/// Reads a service.
const DISCOVER: &str = "/registry.v1.Registry/Discover";
/// Opens views.
const SUBSCRIBE: &str = "/registry.v1.Registry/Subscribe";
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
            let on_off = |on| if on { "on" } else { "off" };
            arguments.extend(["--hold", on_off(setup.hold)].map(OsString::from));
            arguments.extend(["--pin-workers", on_off(setup.pinned)].map(OsString::from));
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
        Ok(Client(Channel::to(self.0.address())))
    }

    async fn watch(&self, service: u32) -> Result<View> {
        Feed::alone(self.0.address(), SUBSCRIBE, Some(subscribe(service)?)).await.map(View)
    }
}

/// A connection to our server.
#[derive(Clone, Debug)]
pub(crate) struct Client(Channel);

impl Connection for Client {
    type Lease = Lease;
    type Renewals = Stream;
    type Watch = View;

    async fn ready_to_call(&self) -> Result<()> {
        self.0.ready_to_call().await
    }

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
        self.0.ask::<v1::RegisterResponse>("/registry.v1.Registry/Register", &request).await.map(drop)
    }

    async fn deregister(&self, place: Place, lease: &Lease) -> Result<()> {
        let instance = v1::InstanceRef { key: Some(key(place.service)), id: place.id(), create_revision: 0 };
        let request = v1::DeregisterRequest {
            lease_id: lease.id.into(),
            instances: vec![instance],
            ..v1::DeregisterRequest::default()
        };
        self.0.ask::<v1::DeregisterResponse>("/registry.v1.Registry/Deregister", &request).await.map(drop)
    }

    async fn discover(&self, service: u32) -> Result<usize> {
        let mut news = Vec::new();
        let mut request = v1::DiscoverRequest { key: Some(key(service)), ..v1::DiscoverRequest::default() };
        loop {
            let page = self.0.unary(DISCOVER, frame(&request)?).await?;
            let next = told::read_page(&page, &mut news).during(DISCOVER)?;
            if next.is_empty() {
                return Ok(news.len());
            }
            request.page_token = String::from_utf8(next.to_vec()).during(DISCOVER)?;
        }
    }

    async fn renewals(&self) -> Result<Stream> {
        let (requests, answers) = self.0.open("/registry.v1.Registry/KeepAlive").await?;
        Ok(Stream { requests, answers })
    }

    async fn watch(&self, service: u32) -> Result<View> {
        Feed::among(&self.0, SUBSCRIBE, Some(subscribe(service)?)).await.map(View)
    }
}

/// The one view of a stream.
fn subscribe(service: u32) -> Result<Bytes> {
    let watch = v1::WatchRequest {
        scope: Some(v1::watch_request::Scope::Key(key(service))),
        ..v1::WatchRequest::default()
    };
    let view = v1::SubscribeView { view_id: 1, watch: Some(watch) };
    frame(&SubscribeRequest { request: Some(v1::subscribe_request::Request::Subscribe(view)) })
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
    requests: Requests,
    answers: Answers,
}

impl Renewals<Lease> for Stream {
    const AT_ONCE: usize = 10_000;

    async fn renew(&mut self, leases: &[Lease]) -> Result<()> {
        let lease_ids = leases.iter().map(|lease| lease.id.to_vec()).collect();
        let request = KeepAliveRequest { lease_ids, request_id: 0 };
        self.requests.send(frame(&request)?)?;
        let answer: KeepAliveResponse = self.answers.answer().await?;
        if answer.exceptions.is_empty() {
            Ok(())
        } else {
            Err(Failure(format!("ours: {} leases were not renewed", answer.exceptions.len())))
        }
    }
}

/// A `Subscribe` stream with one view.
#[derive(Debug)]
pub(crate) struct View(Feed);

impl Watch for View {
    async fn next(&mut self, news: &mut Vec<News>) -> Result<()> {
        let message = self.0.message().await?;
        told::read(&message, news).during("ours: a watch says something that is no message")
    }
}

fn key(service: u32) -> v1::ServiceKey {
    v1::ServiceKey { namespace: String::new(), service: service_name(service) }
}
