//! A world without a network in which the test itself is every peer: it hears each frame, and says what it wants.

use std::io;

use client_sdk::{
    model::Address,
    runtime::{BoxFuture, Connect, Io, Runtime, TokioClock, TokioSpawn},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream},
    sync::mpsc,
};

use crate::kit::frame;

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;
pub(crate) const CANCEL: [u8; 4] = [0, 0, 0, 8];
pub(crate) const MAX_CONCURRENT_STREAMS: u16 = 3;
pub(crate) const INITIAL_WINDOW_SIZE: u16 = 4;

/// Whoever is connected to.
pub(crate) struct Peers(mpsc::Receiver<Peer>);

/// The far end of one connection.
pub(crate) struct Peer {
    pub(crate) address: Address,
    stream: DuplexStream,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) id: u32,
    pub(crate) payload: Vec<u8>,
}

/// The world, and its peers. Each direction of a connection holds so many bytes.
pub(crate) fn world(room: usize) -> (Runtime, Peers) {
    struct Inside(usize, mpsc::Sender<Peer>);

    impl Connect for Inside {
        fn connect<'a>(&'a self, address: &'a Address) -> BoxFuture<'a, io::Result<Box<dyn Io>>> {
            Box::pin(async move {
                let (near, stream) = tokio::io::duplex(self.0);
                self.1.send(Peer { address: address.clone(), stream }).await.expect("somebody accepts");
                Ok(Box::new(near) as Box<dyn Io>)
            })
        }
    }

    let (send, receive) = mpsc::channel(1);
    (Runtime::new(TokioClock::default(), Inside(room, send), TokioSpawn, 7), Peers(receive))
}

impl Peers {
    /// The next connection, greeted with these settings.
    pub(crate) async fn greet(&mut self, settings: &[(u16, u32)]) -> Peer {
        let mut peer = self.0.recv().await.expect("the channel connects");
        peer.stream.read_exact(&mut [0; 24]).await.expect("the preface");
        peer.set(settings).await;
        peer
    }
}

impl Peer {
    pub(crate) async fn set(&mut self, settings: &[(u16, u32)]) {
        let bytes = |(name, value): &(u16, u32)| [&name.to_be_bytes()[..], &value.to_be_bytes()].concat();
        let payload: Vec<u8> = settings.iter().flat_map(bytes).collect();
        self.say(SETTINGS, 0, 0, &payload).await;
    }

    pub(crate) async fn say(&mut self, kind: u8, flags: u8, id: u32, payload: &[u8]) {
        self.stream.write_all(&frame(kind, flags, id, payload)).await.expect("open");
    }

    /// Says these bytes, whatever they are; the other side may be gone.
    pub(crate) async fn raw(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes).await;
    }

    /// Answers a call: `:status 200`, with these headers.
    pub(crate) async fn answer(&mut self, id: u32, flags: u8, headers: &[(&str, &str)]) {
        self.say(HEADERS, flags | END_HEADERS, id, &[&[0x88], &block(headers)[..]].concat()).await;
    }

    pub(crate) async fn trailers(&mut self, id: u32, headers: &[(&str, &str)]) {
        self.say(HEADERS, END_STREAM | END_HEADERS, id, &block(headers)).await;
    }

    /// The next frame that is not about settings or windows. `None`: the connection is over.
    pub(crate) async fn hear(&mut self) -> Option<Frame> {
        loop {
            let mut header = [0; 9];
            self.stream.read_exact(&mut header).await.ok()?;
            let [a, b, c, kind, flags, id @ ..] = header;
            let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
            self.stream.read_exact(&mut payload).await.ok()?;
            match (kind, flags) {
                (SETTINGS, 0) => self.say(SETTINGS, 1, 0, &[]).await,
                (SETTINGS | WINDOW_UPDATE, _) => {}
                _ => return Some(Frame { kind, flags, id: u32::from_be_bytes(id), payload }),
            }
        }
    }

    /// The next frame, which is of this kind.
    pub(crate) async fn hears(&mut self, kind: u8) -> Frame {
        let frame = self.hear().await.expect("open");
        assert_eq!(frame.kind, kind, "{frame:?}");
        frame
    }

    /// A request that is all there: its stream.
    pub(crate) async fn hears_request(&mut self) -> u32 {
        self.hears_requests(1).await[0]
    }

    /// So many requests that are all there: their streams, in the order of their ends.
    pub(crate) async fn hears_requests(&mut self, count: usize) -> Vec<u32> {
        let (mut begun, mut ended) = (Vec::new(), Vec::new());
        while ended.len() < count {
            let frame = self.hear().await.expect("open");
            match (frame.kind, frame.flags) {
                (HEADERS, END_HEADERS) => begun.push(frame.id),
                (DATA, END_STREAM) if begun.contains(&frame.id) => ended.push(frame.id),
                _ => panic!("{frame:?}"),
            }
        }
        ended
    }
}

/// Headers as HPACK has them: literally, without an index.
fn block(headers: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in headers {
        block.push(0);
        for text in [name, value] {
            block.push(u8::try_from(text.len()).expect("short"));
            block.extend(text.as_bytes());
        }
    }
    block
}
