//! etcd, one member, with its defaults: as Debian's package or any other build of it has it, and a newer one beside it.
//!
//! The messages are the few that are needed, by their published field numbers: a generated client wants `protoc`, and opens a
//! stream for every lease and every watch; it also takes more of the processor than what drives the others here.

use std::{
    ffi::OsString,
    marker::PhantomData,
    path::{Path, PathBuf},
    time::Duration,
};

use bytes::Bytes;
use tokio::sync::OnceCell;

use super::{
    Connection, News, Peer, Place, Renewals, Setup, Watch,
    grpc::{Answers, Channel, Feed, Requests, frame},
    reader::{self, LENGTH, Message, Problem},
    service_name,
};
use crate::{
    failure::{During, Failure, Result},
    process::{Process, Recipe, free_address},
};

/// Which etcd.
pub(crate) trait Build: std::fmt::Debug + Send + Sync + 'static {
    /// As in tables.
    const NAME: &'static str;

    /// Its program, where there is one.
    fn program(setup: &Setup) -> Option<&Path>;
}

/// The one that is on the system, or that was named.
#[derive(Debug)]
pub(crate) struct Installed;

/// The newer one.
#[derive(Debug)]
pub(crate) struct Newer;

impl Build for Installed {
    const NAME: &'static str = "etcd";

    fn program(setup: &Setup) -> Option<&Path> {
        Some(&setup.etcd)
    }
}

impl Build for Newer {
    const NAME: &'static str = "etcd-3.7";

    fn program(setup: &Setup) -> Option<&Path> {
        setup.newer_etcd.as_deref()
    }
}

/// The program of etcd 3.7, if this tool was built with it and its package is still where it was then.
pub(crate) fn bundled() -> Option<PathBuf> {
    #[cfg(feature = "etcd-3.7")]
    {
        etcd_bin_vendored::etcd_bin_path().ok().map(Path::to_owned)
    }
    #[cfg(not(feature = "etcd-3.7"))]
    {
        None
    }
}

/// An etcd server.
#[derive(Debug)]
pub(crate) struct Etcd<B> {
    process: Process,
    /// By this, watchers with a connection to themselves read what is there at the start. It does not outlive a restart of the
    /// server.
    ranges: OnceCell<Client>,
    build: PhantomData<B>,
}

impl<B: Build> Peer for Etcd<B> {
    const NAME: &'static str = B::NAME;
    type Connection = Client;

    async fn start(setup: &Setup) -> Result<Self> {
        let program = B::program(setup).ok_or_else(|| Failure(format!("there is no {}", B::NAME)))?;
        let process = Process::start(&setup.directory, |directory| {
            let (address, peers) = (free_address()?, free_address()?);
            let (client, peer) = (format!("http://{address}"), format!("http://{peers}"));
            let mut arguments: Vec<OsString> = [
                "--listen-client-urls",
                &client,
                "--advertise-client-urls",
                &client,
                "--listen-peer-urls",
                &peer,
                "--initial-advertise-peer-urls",
                &peer,
                "--initial-cluster",
                &format!("default={peer}"),
                "--data-dir",
            ]
            .map(OsString::from)
            .into();
            arguments.push(directory.join("data").into());
            Ok(Recipe { name: Self::NAME, program: program.to_owned(), arguments, address })
        });
        Ok(Self { process: process.await?, ranges: OnceCell::new(), build: PhantomData })
    }

    fn process(&self) -> &Process {
        &self.process
    }

    fn process_mut(&mut self) -> &mut Process {
        &mut self.process
    }

    async fn connect(&self) -> Result<Client> {
        Ok(Client(Channel::to(self.process.address())))
    }

    async fn watch(&self, service: u32) -> Result<Range> {
        let events = Feed::alone(self.process.address(), WATCH, Some(create(service)?)).await?;
        let ranges = self.ranges.get_or_try_init(|| self.connect()).await?;
        Range::after(events, ranges, service).await
    }
}

// Fields of `RangeResponse`, `WatchResponse`, `Event` and `KeyValue`.
const KVS: u64 = 2;
const EVENTS: u64 = 11;
const EVENT_TYPE: u64 = 1;
const EVENT_KV: u64 = 2;
const KEY: u64 = 1;
const DELETE: u64 = 1;

/// Reads keys.
const RANGE: &str = "/etcdserverpb.KV/Range";
/// Opens watches.
const WATCH: &str = "/etcdserverpb.Watch/Watch";

/// A connection to etcd.
#[derive(Clone, Debug)]
pub(crate) struct Client(Channel);

impl Client {
    /// Reads what is in a service now, beside watches.
    async fn read(&self, service: u32, news: &mut Vec<News>) -> Result<()> {
        let found = self.0.unary_among(RANGE, all_of(service)?).await?;
        read_range(&found, news).during(RANGE)
    }
}

impl Connection for Client {
    type Lease = i64;
    type Renewals = KeepAlive;
    type Watch = Range;

    async fn ready_to_call(&self) -> Result<()> {
        self.0.ready_to_call().await
    }

    async fn register(&self, place: Place, ttl: Duration) -> Result<i64> {
        let grant = wire::LeaseGrant { ttl: i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX), id: 0 };
        let granted: wire::LeaseGranted = self.0.ask("/etcdserverpb.Lease/LeaseGrant", &grant).await?;
        self.register_under(place, &granted.id).await?;
        Ok(granted.id)
    }

    async fn register_under(&self, place: Place, lease: &i64) -> Result<()> {
        let (key, value) = (key(place).into_bytes(), place.address().into_bytes());
        let put = wire::Put { key, value, lease: *lease };
        let _: wire::Done = self.0.ask("/etcdserverpb.KV/Put", &put).await?;
        Ok(())
    }

    async fn deregister(&self, _: Place, lease: &i64) -> Result<()> {
        let revoke = wire::LeaseRevoke { id: *lease };
        let _: wire::Done = self.0.ask("/etcdserverpb.Lease/LeaseRevoke", &revoke).await?;
        Ok(())
    }

    async fn discover(&self, service: u32) -> Result<usize> {
        let mut news = Vec::new();
        let found = self.0.unary(RANGE, all_of(service)?).await?;
        read_range(&found, &mut news).during(RANGE)?;
        Ok(news.len())
    }

    async fn renewals(&self) -> Result<KeepAlive> {
        let (requests, answers) = self.0.open("/etcdserverpb.Lease/LeaseKeepAlive").await?;
        Ok(KeepAlive { requests, answers })
    }

    async fn watch(&self, service: u32) -> Result<Range> {
        let events = Feed::among(&self.0, WATCH, Some(create(service)?)).await?;
        Range::after(events, self, service).await
    }
}

/// A stream of renewals; each message renews one lease.
#[derive(Debug)]
pub(crate) struct KeepAlive {
    requests: Requests,
    answers: Answers,
}

impl Renewals<i64> for KeepAlive {
    const AT_ONCE: usize = 1;

    async fn renew(&mut self, leases: &[i64]) -> Result<()> {
        for id in leases {
            self.requests.send(frame(&wire::LeaseKeepAlive { id: *id })?)?;
            let answer: wire::LeaseKept = self.answers.answer().await?;
            if answer.ttl <= 0 {
                return Err(Failure("etcd: a lease was not renewed".to_owned()));
            }
        }
        Ok(())
    }
}

/// A watched range of keys.
#[derive(Debug)]
pub(crate) struct Range {
    events: Feed,
    first: Vec<News>,
}

impl Range {
    /// What is there once these events are told, and then they.
    async fn after(mut events: Feed, client: &Client, service: u32) -> Result<Self> {
        // Created; what comes from here on is told.
        events.message().await?;
        let mut first = Vec::new();
        client.read(service, &mut first).await?;
        Ok(Self { events, first })
    }
}

fn create(service: u32) -> Result<Bytes> {
    let (key, range_end) = range(service);
    frame(&wire::Watch { create: Some(wire::WatchCreate { key, range_end, start_revision: 0 }) })
}

impl Watch for Range {
    async fn next(&mut self, news: &mut Vec<News>) -> Result<()> {
        if !self.first.is_empty() {
            news.append(&mut self.first);
            return Ok(());
        }
        let message = self.events.message().await?;
        told(&message, news).during("etcd: a watch says something that is no message")
    }
}

/// Asks for what is in a service.
fn all_of(service: u32) -> Result<Bytes> {
    let (key, range_end) = range(service);
    frame(&wire::Range { key, range_end })
}

/// Reads a `RangeResponse`.
fn read_range(message: &[u8], news: &mut Vec<News>) -> std::result::Result<(), Problem> {
    let mut message = Message(message);
    while let Some((field, wire)) = message.field()? {
        if field == KVS {
            news.extend(keys_number(Message(message.bytes()?))?.map(News::There));
        } else {
            message.skip(wire)?;
        }
    }
    Ok(())
}

/// Reads a `WatchResponse`.
fn told(message: &[u8], news: &mut Vec<News>) -> std::result::Result<(), Problem> {
    let mut message = Message(message);
    while let Some((field, wire)) = message.field()? {
        if field != EVENTS {
            message.skip(wire)?;
            continue;
        }
        let (mut event, mut deleted, mut number) = (Message(message.bytes()?), false, None);
        while let Some((field, wire)) = event.field()? {
            match field {
                EVENT_TYPE => deleted = event.varint()? == DELETE,
                EVENT_KV => number = keys_number(Message(event.bytes()?))?,
                _ => event.skip(wire)?,
            }
        }
        news.extend(number.map(|it| if deleted { News::Gone(it) } else { News::There(it) }));
    }
    Ok(())
}

fn keys_number(mut kv: Message<'_>) -> std::result::Result<Option<u32>, Problem> {
    let mut found = None;
    while let Some((field, wire)) = kv.field()? {
        if field == KEY && wire == LENGTH {
            found = reader::number(kv.bytes()?);
        } else {
            kv.skip(wire)?;
        }
    }
    Ok(found)
}

fn key(place: Place) -> String {
    format!("/services/{}/{}", place.service_name(), place.id())
}

/// All keys of a service: up to the one after its last possible.
fn range(service: u32) -> (Vec<u8>, Vec<u8>) {
    let name = service_name(service);
    (format!("/services/{name}/").into_bytes(), format!("/services/{name}0").into_bytes())
}

/// The messages, by etcd's published field numbers.
mod wire {
    #[derive(Clone, PartialEq, prost::Message)]
    pub(crate) struct LeaseGrant {
        #[prost(int64, tag = "1")]
        pub(crate) ttl: i64,
        #[prost(int64, tag = "2")]
        pub(crate) id: i64,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(crate) struct LeaseGranted {
        #[prost(int64, tag = "2")]
        pub(crate) id: i64,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(crate) struct LeaseRevoke {
        #[prost(int64, tag = "1")]
        pub(crate) id: i64,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(crate) struct LeaseKeepAlive {
        #[prost(int64, tag = "1")]
        pub(crate) id: i64,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(crate) struct LeaseKept {
        #[prost(int64, tag = "3")]
        pub(crate) ttl: i64,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(crate) struct Put {
        #[prost(bytes = "vec", tag = "1")]
        pub(crate) key: Vec<u8>,
        #[prost(bytes = "vec", tag = "2")]
        pub(crate) value: Vec<u8>,
        #[prost(int64, tag = "3")]
        pub(crate) lease: i64,
    }

    /// An answer of which only its coming matters.
    #[derive(Clone, PartialEq, prost::Message)]
    pub(crate) struct Done {}

    #[derive(Clone, PartialEq, prost::Message)]
    pub(crate) struct Range {
        #[prost(bytes = "vec", tag = "1")]
        pub(crate) key: Vec<u8>,
        #[prost(bytes = "vec", tag = "2")]
        pub(crate) range_end: Vec<u8>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(crate) struct Watch {
        #[prost(message, optional, tag = "1")]
        pub(crate) create: Option<WatchCreate>,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(crate) struct WatchCreate {
        #[prost(bytes = "vec", tag = "1")]
        pub(crate) key: Vec<u8>,
        #[prost(bytes = "vec", tag = "2")]
        pub(crate) range_end: Vec<u8>,
        #[prost(int64, tag = "3")]
        pub(crate) start_revision: i64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_watch_and_a_range_say_is_read_from_their_bytes_and_half_of_it_is_refused() {
        let kv = |number: u32| {
            let key = format!("/services/service-000001/i-{number:08}");
            [&[10, u8::try_from(key.len()).unwrap()], key.as_bytes(), &[16, 200, 1, 42, 2, b'v', b'v']]
                .concat()
        };
        let event = |kind: u8, number| {
            let kv = kv(number);
            let length = u8::try_from(kv.len()).unwrap();
            let event = [&[8, kind, 18, length][..], &kv].concat();
            [&[90, u8::try_from(event.len()).unwrap()], &event[..]].concat()
        };
        // A header of four bytes, as any answer has, and three events.
        let message = [&[10, 2, 8, 1][..], &event(0, 7), &event(1, 12_345_678), &event(0, 9)].concat();
        let mut news = Vec::new();
        told(&message, &mut news).unwrap();
        assert_eq!(news, [News::There(7), News::Gone(12_345_678), News::There(9)]);
        assert!(told(&message[..message.len() - 1], &mut news).is_err());

        let found = |number| {
            let kv = kv(number);
            [&[18, u8::try_from(kv.len()).unwrap()], &kv[..]].concat()
        };
        let message = [&[10, 2, 8, 1][..], &found(5), &found(6), &[32, 2]].concat();
        let mut news = Vec::new();
        read_range(&message, &mut news).unwrap();
        assert_eq!(news, [News::There(5), News::There(6)]);
        assert!(read_range(&message[..message.len() - 3], &mut news).is_err());
    }
}
