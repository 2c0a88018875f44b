//! ZooKeeper, one server, from Debian's package, with its defaults.
//!
//! Spoken to in its own protocol, of which this is the small part that is needed: frames of a length and big-endian fields;
//! requests are answered in their order; what a watch sees comes in between.

use std::{
    collections::{HashMap, VecDeque},
    ffi::OsString,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, BufReader},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::{mpsc, oneshot},
};

use super::{Connection, News, Peer, Place, Renewals, Setup, Watch, reader::number, service_name};
use crate::{
    clock,
    failure::{During, Failure, Result},
    process::{Process, Recipe, free_address},
};

const CREATE: i32 = 1;
const DELETE: i32 = 2;
const GET_CHILDREN: i32 = 8;
const PING: i32 = 11;
const ADD_WATCH: i32 = 106;
/// The number of a request that is a ping, and of a message that is a watch's news.
const PING_NUMBER: i32 = -2;
const NEWS_NUMBER: i32 = -1;
const NODE_EXISTS: i32 = -110;
/// How long a session lives that is not heard of, if it is to live.
const TIMEOUT: Duration = Duration::from_secs(30);
/// How long a server that starts may lose whoever greets it, how long one greeting may take, and how long it rests after each.
const GREETED_WITHIN: Duration = Duration::from_mins(1);
const GREETING: Duration = Duration::from_secs(1);
const REST: Duration = Duration::from_millis(20);
/// A session that is to end pings not at all.
const NEVER: Duration = Duration::from_hours(24);
/// Kinds of news.
const CREATED: i32 = 1;
const DELETED: i32 = 2;
/// A watch that stays, and sees what is below its node.
const PERSISTENT_RECURSIVE: i32 = 1;

/// A ZooKeeper server.
#[derive(Debug)]
pub(crate) struct ZooKeeper(Process);

impl Peer for ZooKeeper {
    const NAME: &'static str = "zookeeper";
    type Connection = Session;
    const WATCHERS_ARE_ONE: bool = true;

    async fn start(setup: &Setup) -> Result<Self> {
        let process = Process::start(&setup.directory, |directory| {
            let address = free_address()?;
            let config = directory.join("zoo.cfg");
            let text = format!(
                "tickTime=2000\nmaxClientCnxns=0\nadmin.enableServer=false\ndataDir={}\nclientPort={}\nclientPortAddress={}\n",
                directory.join("data").display(),
                address.port(),
                address.ip()
            );
            std::fs::write(&config, text).during("cannot write ZooKeeper's settings")?;
            let mut arguments: Vec<OsString> = vec!["-cp".into(), setup.zookeeper.clone().into()];
            arguments.push("org.apache.zookeeper.server.quorum.QuorumPeerMain".into());
            arguments.push(config.into());
            Ok(Recipe { name: Self::NAME, program: "java".into(), arguments, address })
        });
        Ok(Self(process.await?))
    }

    fn process(&self) -> &Process {
        &self.0
    }

    fn process_mut(&mut self) -> &mut Process {
        &mut self.0
    }

    async fn connect(&self) -> Result<Session> {
        Session::open(self.0.address(), TIMEOUT, Some(TIMEOUT / 3)).await
    }

    async fn prepare(&self, services: u32) -> Result<()> {
        let session = self.connect().await?;
        for service in 0..services {
            match session.create(&service_path(service), &[], false).await {
                Ok(()) | Err(Refused::Code(NODE_EXISTS)) => {}
                Err(error) => return Err(error.named("create")),
            }
        }
        session.close().await
    }
}

/// A session on a connection of its own. It pings, and ends when its last clone is dropped.
#[derive(Clone, Debug)]
pub(crate) struct Session(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    address: SocketAddr,
    requests: mpsc::Sender<Call>,
    watches: Arc<Mutex<HashMap<String, Vec<mpsc::Sender<News>>>>>,
}

/// A request, and who waits for its answer.
#[derive(Debug)]
struct Call {
    kind: i32,
    body: Bytes,
    answer: oneshot::Sender<std::result::Result<Bytes, Refused>>,
}

/// Why a request was not done.
#[derive(Debug)]
enum Refused {
    Code(i32),
    Ended,
}

impl Refused {
    fn named(self, what: &str) -> Failure {
        Failure(match self {
            Self::Code(code) => format!("zookeeper: {what} was refused with the code {code}"),
            Self::Ended => format!("zookeeper: the session ended during {what}"),
        })
    }
}

type Waiting = Arc<Mutex<VecDeque<oneshot::Sender<std::result::Result<Bytes, Refused>>>>>;

impl Session {
    /// Opens a session that ends if it is not heard of for `timeout`; pings after so much silence, if at all.
    async fn open(address: SocketAddr, timeout: Duration, silence: Option<Duration>) -> Result<Self> {
        let (read, write) = greet(address, timeout).await?;
        let (requests, calls) = mpsc::channel(64);
        let waiting = Waiting::default();
        let watches = Arc::new(Mutex::new(HashMap::new()));
        clock::spawn(writes(write, calls, Arc::clone(&waiting), silence.unwrap_or(NEVER)));
        clock::spawn(reads(read, waiting, Arc::clone(&watches)));
        Ok(Self(Arc::new(Inner { address, requests, watches })))
    }

    async fn call(&self, kind: i32, body: BytesMut) -> std::result::Result<Bytes, Refused> {
        let (answer, answered) = oneshot::channel();
        let call = Call { kind, body: body.freeze(), answer };
        self.0.requests.send(call).await.map_err(|_| Refused::Ended)?;
        answered.await.map_err(|_| Refused::Ended)?
    }

    async fn create(&self, path: &str, data: &[u8], ephemeral: bool) -> std::result::Result<(), Refused> {
        let mut body = BytesMut::new();
        put(&mut body, path.as_bytes());
        put(&mut body, data);
        // One rule: everybody may do everything.
        body.put_i32(1);
        body.put_i32(31);
        put(&mut body, b"world");
        put(&mut body, b"anyone");
        body.put_i32(i32::from(ephemeral));
        self.call(CREATE, body).await.map(drop)
    }

    async fn children(&self, service: u32) -> Result<Vec<String>> {
        let mut body = BytesMut::new();
        put(&mut body, service_path(service).as_bytes());
        body.put_u8(0); // without a watch
        let mut answer = self.call(GET_CHILDREN, body).await.map_err(|error| error.named("getChildren"))?;
        let count = take_i32(&mut answer)?;
        (0..count).map(|_| take_text(&mut answer)).collect()
    }

    /// Ends the session at once, with all its ephemeral nodes.
    async fn close(&self) -> Result<()> {
        const CLOSE: i32 = -11;
        self.call(CLOSE, BytesMut::new()).await.map(drop).map_err(|error| error.named("closeSession"))
    }
}

impl Connection for Session {
    type Lease = ();
    type Renewals = Pings;
    type Watch = Below;

    async fn register(&self, place: Place, _: Duration) -> Result<()> {
        let created = self.create(&path(place), place.address().as_bytes(), true).await;
        created.map_err(|error| error.named("create"))
    }

    async fn register_under(&self, place: Place, (): &()) -> Result<()> {
        self.register(place, Duration::ZERO).await
    }

    async fn deregister(&self, place: Place, (): &()) -> Result<()> {
        let mut body = BytesMut::new();
        put(&mut body, path(place).as_bytes());
        body.put_i32(-1); // whatever its version
        self.call(DELETE, body).await.map(drop).map_err(|error| error.named("delete"))
    }

    async fn discover(&self, service: u32) -> Result<usize> {
        Ok(self.children(service).await?.len())
    }

    async fn renewals(&self) -> Result<Pings> {
        Ok(Pings(self.clone()))
    }

    async fn silent(&self, ttl: Duration) -> Result<Self> {
        Self::open(self.0.address, ttl, None).await
    }

    async fn watch(&self, service: u32) -> Result<Below> {
        let at = service_path(service);
        let (sender, news) = mpsc::channel(65_536);
        self.0
            .watches
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(at.clone())
            .or_default()
            .push(sender);
        let mut body = BytesMut::new();
        put(&mut body, at.as_bytes());
        body.put_i32(PERSISTENT_RECURSIVE);
        self.call(ADD_WATCH, body).await.map_err(|error| error.named("addWatch"))?;
        let children = self.children(service).await?;
        let first = children.iter().filter_map(|name| number(name.as_bytes())).map(News::There).collect();
        Ok(Below { news, first, _session: self.clone() })
    }
}

/// Pings: the cheapest that keeps a session alive, and the instances of it.
#[derive(Debug)]
pub(crate) struct Pings(Session);

impl Renewals<()> for Pings {
    const AT_ONCE: usize = 1;

    async fn renew(&mut self, leases: &[()]) -> Result<()> {
        for () in leases {
            self.0.call(PING, BytesMut::new()).await.map_err(|error| error.named("ping"))?;
        }
        Ok(())
    }
}

/// A watch on what is below a service's node.
#[derive(Debug)]
pub(crate) struct Below {
    news: mpsc::Receiver<News>,
    first: Vec<News>,
    _session: Session,
}

impl Watch for Below {
    async fn next(&mut self, news: &mut Vec<News>) -> Result<()> {
        if !self.first.is_empty() {
            news.append(&mut self.first);
            return Ok(());
        }
        let first = self.news.recv().await;
        news.push(first.ok_or_else(|| Failure("zookeeper: a watch has ended".to_owned()))?);
        while let Ok(more) = self.news.try_recv() {
            news.push(more);
        }
        Ok(())
    }
}

/// Opens a connection and a session. A server that is just starting takes connections, and loses whoever greets it so early.
async fn greet(address: SocketAddr, timeout: Duration) -> Result<(BufReader<OwnedReadHalf>, OwnedWriteHalf)> {
    let mut hello = BytesMut::new();
    hello.put_i32(0); // version
    hello.put_i64(0); // nothing seen yet
    hello.put_i32(i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX));
    hello.put_i64(0); // a new session
    hello.put_i32(16);
    hello.put_bytes(0, 16); // without a password
    hello.put_u8(0); // not read-only
    let end = clock::now() + GREETED_WITHIN;
    while clock::now() < end {
        let stream = TcpStream::connect(address).await.during("cannot connect to zookeeper")?;
        stream.set_nodelay(true).during("cannot set a socket's options")?;
        let (read, mut write) = stream.into_split();
        let mut read = BufReader::new(read);
        let greeted = async {
            send(&mut write, &hello).await?;
            receive(&mut read).await
        };
        if let Ok(Ok(_)) = tokio::time::timeout(GREETING, greeted).await {
            return Ok((read, write));
        }
        tokio::time::sleep(REST).await;
    }
    Err(Failure(format!("zookeeper opened no session within {GREETED_WITHIN:?}")))
}

/// Sends requests, and pings when there is nothing else to send.
async fn writes(
    mut write: OwnedWriteHalf,
    mut calls: mpsc::Receiver<Call>,
    waiting: Waiting,
    silence: Duration,
) {
    let mut number = 0;
    loop {
        let call = match tokio::time::timeout(silence, calls.recv()).await {
            Ok(Some(call)) => call,
            Ok(None) => return,
            Err(_) => {
                let (answer, _) = oneshot::channel();
                Call { kind: PING, body: Bytes::new(), answer }
            }
        };
        let mut frame = BytesMut::new();
        number += 1;
        frame.put_i32(if call.kind == PING { PING_NUMBER } else { number });
        frame.put_i32(call.kind);
        frame.put(call.body);
        waiting.lock().unwrap_or_else(PoisonError::into_inner).push_back(call.answer);
        if send(&mut write, &frame).await.is_err() {
            return;
        }
    }
}

/// Hands out answers and news.
async fn reads(
    mut read: BufReader<OwnedReadHalf>,
    waiting: Waiting,
    watches: Arc<Mutex<HashMap<String, Vec<mpsc::Sender<News>>>>>,
) {
    while let Ok(mut frame) = receive(&mut read).await {
        if frame.len() < 16 {
            break;
        }
        let (number, _, code) = (frame.get_i32(), frame.get_i64(), frame.get_i32());
        if number == NEWS_NUMBER {
            let Some((at, news)) = parse_news(frame) else { continue };
            let watches = watches.lock().unwrap_or_else(PoisonError::into_inner);
            for watch in watches.get(&at).into_iter().flatten() {
                // Beyond what it takes a watcher is counted as one that was not told.
                let _ = watch.try_send(news);
            }
            continue;
        }
        let waits = waiting.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        let answer = if code == 0 { Ok(frame) } else { Err(Refused::Code(code)) };
        if let Some(waits) = waits {
            let _ = waits.send(answer);
        }
    }
    // Whoever still waits learns of the end.
    waiting.lock().unwrap_or_else(PoisonError::into_inner).clear();
    watches.lock().unwrap_or_else(PoisonError::into_inner).clear();
}

fn parse_news(mut frame: Bytes) -> Option<(String, News)> {
    let (kind, _) = (take_i32(&mut frame).ok()?, take_i32(&mut frame).ok()?);
    let path = take_text(&mut frame).ok()?;
    let (service, id) = path.rsplit_once('/')?;
    let number = number(id.as_bytes())?;
    match kind {
        CREATED => Some((service.to_owned(), News::There(number))),
        DELETED => Some((service.to_owned(), News::Gone(number))),
        _ => None,
    }
}

async fn send(write: &mut OwnedWriteHalf, body: &[u8]) -> std::io::Result<()> {
    let mut frame = BytesMut::with_capacity(4 + body.len());
    frame.put_i32(i32::try_from(body.len()).unwrap_or(i32::MAX));
    frame.put(body);
    write.write_all(&frame).await
}

async fn receive(read: &mut BufReader<OwnedReadHalf>) -> std::io::Result<Bytes> {
    let length = usize::try_from(read.read_i32().await?).unwrap_or(0);
    let mut frame = vec![0; length];
    read.read_exact(&mut frame).await?;
    Ok(frame.into())
}

fn put(body: &mut BytesMut, bytes: &[u8]) {
    body.put_i32(i32::try_from(bytes.len()).unwrap_or(i32::MAX));
    body.put(bytes);
}

fn take_i32(frame: &mut Bytes) -> Result<i32> {
    if frame.len() < 4 {
        Err(Failure("zookeeper: an answer is short".to_owned()))
    } else {
        Ok(frame.get_i32())
    }
}

fn take_text(frame: &mut Bytes) -> Result<String> {
    let length = usize::try_from(take_i32(frame)?).unwrap_or(0);
    if frame.len() < length {
        return Err(Failure("zookeeper: an answer is short".to_owned()));
    }
    String::from_utf8(frame.split_to(length).into()).during("zookeeper: a name")
}

fn service_path(service: u32) -> String {
    format!("/{}", service_name(service))
}

fn path(place: Place) -> String {
    format!("{}/{}", service_path(place.service), place.id())
}
