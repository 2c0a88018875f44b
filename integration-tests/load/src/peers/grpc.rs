//! gRPC for a client that measures: messages are bytes, a connection of streams is one task, and nothing is in between.
//! Who has a connection to himself, a watcher or one who makes one call at a time, reads it by himself ([`alone`]).
//!
//! Load and servers share a machine. What a channel does for its users beyond that (reconnecting, queues, limits, interceptors)
//! would take the processor from the server that is measured. All that speak gRPC are driven by this, the floor too.
//!
//! Owns the frames of messages and the statuses of calls; knows no message and no server.

mod alone;

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use h2::{
    RecvStream, SendStream,
    client::{Builder, ResponseFuture, SendRequest},
};
use http::{
    HeaderMap, HeaderValue, Method, Request, StatusCode, Uri, Version,
    header::{CONTENT_TYPE, TE},
    uri::{Authority, PathAndQuery, Scheme},
};
use prost::Message;
use tokio::{
    net::TcpStream,
    sync::{Mutex, OnceCell},
};

use self::alone::Alone;
use crate::{
    clock,
    failure::{During, Failure, Result},
};

/// What a server may send on a stream, and on all, before it is told to go on: what hyper's clients allow.
const STREAM_WINDOW: u32 = 2 << 20;
const CONNECTION_WINDOW: u32 = 5 << 20;
/// Memory that is kept for the rest of a message at most, before it comes.
const AT_ONCE: usize = 4 << 20;
/// A connection that nobody reads for longer is given up: servers ask whether anybody is there, some after 20 s.
const UNHEARD: Duration = Duration::from_secs(10);
/// In front of a message: whether it is compressed, and its length.
const PREFIX: usize = 5;

/// A message with its prefix, as it goes over the wire.
pub(crate) fn frame(message: &impl Message) -> Result<Bytes> {
    let length = message.encoded_len();
    let mut framed = BytesMut::with_capacity(PREFIX + length);
    put_prefix(&mut framed, length)?;
    message.encode(&mut framed).during("a message has its length")?;
    Ok(framed.freeze())
}

/// The same of bytes.
pub(crate) fn frame_bytes(message: &[u8]) -> Result<Bytes> {
    let mut framed = BytesMut::with_capacity(PREFIX + message.len());
    put_prefix(&mut framed, message.len())?;
    framed.put_slice(message);
    Ok(framed.freeze())
}

fn put_prefix(framed: &mut BytesMut, length: usize) -> Result<()> {
    framed.put_u8(0);
    framed.put_u32(u32::try_from(length).during("a message is too long")?);
    Ok(())
}

/// A connection for calls that are made one after the other, and one for streams, each opened when it is first used. Clones share
/// them.
#[derive(Clone, Debug)]
pub(crate) struct Channel {
    address: SocketAddr,
    /// And when it was used last.
    calls: Arc<Mutex<Option<(Alone, Instant)>>>,
    streams: Arc<OnceCell<Streams>>,
}

#[derive(Clone, Debug)]
struct Streams {
    send: SendRequest<Bytes>,
    authority: Authority,
}

impl Streams {
    async fn connect(address: SocketAddr) -> Result<Self> {
        let failed = || format!("cannot connect to {address}");
        let io = TcpStream::connect(address).await.during(&failed())?;
        io.set_nodelay(true).during(&failed())?;
        let mut builder = Builder::new();
        builder
            .enable_push(false)
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW);
        let (send, connection) = builder.handshake(io).await.during(&failed())?;
        // It ends with its last stream. Why it failed its streams say.
        clock::spawn(async move { drop(connection.await) });
        let authority = Authority::try_from(address.to_string()).during("an address is an authority")?;
        Ok(Self { send, authority })
    }

    fn head(&self, method: &'static str) -> Result<Request<()>> {
        let mut parts = http::uri::Parts::default();
        parts.scheme = Some(Scheme::HTTP);
        parts.authority = Some(self.authority.clone());
        parts.path_and_query = Some(PathAndQuery::from_static(method));
        let mut request = Request::new(());
        *request.uri_mut() = Uri::from_parts(parts).during("a method makes a URI")?;
        *request.method_mut() = Method::POST;
        *request.version_mut() = Version::HTTP_2;
        request.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        request.headers_mut().insert(TE, HeaderValue::from_static("trailers"));
        Ok(request)
    }
}

impl Channel {
    /// A client of its own.
    pub(crate) fn to(address: SocketAddr) -> Self {
        Self { address, calls: Arc::default(), streams: Arc::default() }
    }

    /// Opens the connection for calls, so that the first does not wait for it.
    pub(crate) async fn ready_to_call(&self) -> Result<()> {
        *self.calls.lock().await = Some((Alone::connect(self.address).await?, clock::now()));
        Ok(())
    }

    /// One framed message there, and one message back. Who else calls by this channel has to wait.
    pub(crate) async fn unary(&self, method: &'static str, framed: Bytes) -> Result<Bytes> {
        let mut calls = self.calls.lock().await;
        // Only one on which a call went to its end is used again, and only soon: nobody hears it meanwhile.
        let mut alone = match calls.take() {
            Some((alone, used)) if clock::now().saturating_duration_since(used) < UNHEARD => alone,
            _ => Alone::connect(self.address).await?,
        };
        let answer = alone.unary(method, framed.clone()).await?;
        *calls = Some((alone, clock::now()));
        match answer {
            Some(answer) => Ok(answer),
            // Why there is none is in headers, which are read where it is asked once more.
            None => self.unary_among(method, framed).await,
        }
    }

    /// The same beside the channel's streams, so that nobody has to wait, and no connection is opened for it.
    pub(crate) async fn unary_among(&self, method: &'static str, framed: Bytes) -> Result<Bytes> {
        let (mut requests, mut answers) = self.open(method).await?;
        requests.0.send_data(framed, true).during(method)?;
        let answer = answers.message().await?;
        let answer = answer.ok_or_else(|| Failure(format!("{method}: an answer without a message")))?;
        match answers.message().await? {
            None => Ok(answer),
            Some(_) => Err(Failure(format!("{method}: more than one answer"))),
        }
    }

    /// The same with messages.
    pub(crate) async fn ask<A: Message + Default>(
        &self,
        method: &'static str,
        question: &impl Message,
    ) -> Result<A> {
        A::decode(self.unary(method, frame(question)?).await?).during(method)
    }

    /// Opens a stream.
    pub(crate) async fn open(&self, method: &'static str) -> Result<(Requests, Answers)> {
        let streams = self.streams.get_or_try_init(|| Streams::connect(self.address)).await?;
        let mut send = streams.send.clone().ready().await.during(method)?;
        let (answer, requests) = send.send_request(streams.head(method)?, false).during(method)?;
        Ok((Requests(requests), Answers { method, begun: Begun::Asked(answer), rest: Rest::default() }))
    }
}

/// This side of a stream. It is open as long as this is there.
#[derive(Debug)]
pub(crate) struct Requests(SendStream<Bytes>);

impl Requests {
    /// Sends a framed message; what the server does not take yet waits in the connection.
    pub(crate) fn send(&mut self, framed: Bytes) -> Result<()> {
        self.0.send_data(framed, false).during("a stream has ended")
    }
}

/// The other side of a stream.
#[derive(Debug)]
pub(crate) struct Answers {
    method: &'static str,
    begun: Begun,
    rest: Rest,
}

#[derive(Debug)]
enum Begun {
    Asked(ResponseFuture),
    Answering(RecvStream),
    Ended,
}

impl Answers {
    /// Waits until the server says that it answers.
    async fn begun(&mut self) -> Result<()> {
        let Begun::Asked(answer) = &mut self.begun else { return Ok(()) };
        let answer = answer.await.during(self.method)?;
        if answer.status() != StatusCode::OK {
            return Err(Failure(format!("{}: HTTP status {}", self.method, answer.status())));
        }
        if answer.headers().contains_key("grpc-status") {
            return self.end(Some(answer.headers()));
        }
        self.begun = Begun::Answering(answer.into_body());
        Ok(())
    }

    /// The next message; `None` when the call has ended well.
    pub(crate) async fn message(&mut self) -> Result<Option<Bytes>> {
        self.begun().await?;
        loop {
            if let Some(message) = self.rest.message().during(self.method)? {
                return Ok(Some(message));
            }
            let Begun::Answering(body) = &mut self.begun else { return Ok(None) };
            match body.data().await {
                Some(data) => {
                    let data = data.during(self.method)?;
                    body.flow_control().release_capacity(data.len()).during(self.method)?;
                    self.rest.push(data);
                }
                None if self.rest.is_empty() => {
                    let trailers = body.trailers().await.during(self.method)?;
                    self.end(trailers.as_ref())?;
                }
                None => return Err(Failure(format!("{}: it ended within a message", self.method))),
            }
        }
    }

    /// The same; that there is none is a failure.
    async fn expected(&mut self) -> Result<Bytes> {
        let message = self.message().await?;
        message.ok_or_else(|| Failure(format!("{}: the server has ended the stream", self.method)))
    }

    /// The same, decoded.
    pub(crate) async fn answer<A: Message + Default>(&mut self) -> Result<A> {
        A::decode(self.expected().await?).during(self.method)
    }

    fn end(&mut self, trailers: Option<&HeaderMap>) -> Result<()> {
        self.begun = Begun::Ended;
        let said = |name| Some(trailers?.get(name)?.to_str().unwrap_or("unreadable"));
        match said("grpc-status") {
            Some("0") => Ok(()),
            code => Err(Failure(format!(
                "{}: status {}: {}",
                self.method,
                code.unwrap_or("missing"),
                said("grpc-message").unwrap_or_default()
            ))),
        }
    }
}

/// What is followed.
#[derive(Debug)]
pub(crate) struct Feed(Way);

#[derive(Debug)]
enum Way {
    /// A stream among others of a connection.
    Among {
        answers: Answers,
        /// Kept: a stream that is let go of ends.
        _requests: Requests,
    },
    /// A stream that has a connection to itself, read by whoever follows it.
    Alone(Alone),
}

impl Feed {
    /// Opens one on this connection, and asks a framed question if there is one.
    pub(crate) async fn among(
        channel: &Channel,
        method: &'static str,
        question: Option<Bytes>,
    ) -> Result<Self> {
        let (mut requests, answers) = channel.open(method).await?;
        question.map_or(Ok(()), |question| requests.send(question))?;
        Ok(Self(Way::Among { answers, _requests: requests }))
    }

    /// The same on a connection of its own.
    pub(crate) async fn alone(
        address: SocketAddr,
        method: &'static str,
        question: Option<Bytes>,
    ) -> Result<Self> {
        let mut alone = Alone::connect(address).await?;
        alone.ask(method, question, false).await?;
        Ok(Self(Way::Alone(alone)))
    }

    /// Waits until the server says that it answers.
    pub(crate) async fn begun(&mut self) -> Result<()> {
        match &mut self.0 {
            Way::Among { answers, .. } => answers.begun().await,
            Way::Alone(alone) => alone.begun().await,
        }
    }

    /// The next message; that there is none is a failure.
    pub(crate) async fn message(&mut self) -> Result<Bytes> {
        match &mut self.0 {
            Way::Among { answers, .. } => answers.expected().await,
            Way::Alone(alone) => {
                let message = alone.message().await?;
                message.ok_or_else(|| alone.failure("has ended the stream"))
            }
        }
    }
}

/// What has come and was not given out yet.
#[derive(Debug, Default)]
struct Rest {
    /// Messages lie in what came at once, mostly, and are given out where they lie.
    front: Bytes,
    /// All of it, where a message came in several pieces.
    grown: BytesMut,
}

/// A message is not plain.
#[derive(Debug, thiserror::Error)]
#[error("a message is compressed, which was not asked for")]
struct Compressed;

impl Rest {
    fn is_empty(&self) -> bool {
        self.front.is_empty() && self.grown.is_empty()
    }

    fn push(&mut self, data: Bytes) {
        if self.is_empty() {
            self.front = data;
            return;
        }
        if self.grown.is_empty() {
            // At once, unless a server announces more than anybody would send.
            let whole = length(&self.front).unwrap_or_default().min(AT_ONCE);
            self.grown.reserve(whole.max(self.front.len() + data.len()));
            self.grown.put(std::mem::take(&mut self.front));
        }
        self.grown.put(data);
    }

    fn message(&mut self) -> std::result::Result<Option<Bytes>, Compressed> {
        if length(&self.grown).is_some_and(|whole| self.grown.len() >= whole) {
            self.front = std::mem::take(&mut self.grown).freeze();
        }
        let Some(whole) = length(&self.front) else { return Ok(None) };
        if self.front[0] != 0 {
            return Err(Compressed);
        }
        if self.front.len() < whole {
            return Ok(None);
        }
        let mut message = self.front.split_to(whole);
        message.advance(PREFIX);
        Ok(Some(message))
    }
}

/// Of the message that this begins with, prefix included.
fn length(bytes: &[u8]) -> Option<usize> {
    let [_, length @ ..] = bytes.first_chunk::<PREFIX>()?;
    Some(PREFIX + u32::from_be_bytes(*length) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_found_however_they_are_cut() {
        let messages: Vec<Vec<u8>> = [0, 1, 300, 0, 70_000].map(|length| vec![7; length]).into();
        let mut wire = Vec::new();
        for message in &messages {
            wire.extend_from_slice(&frame_bytes(message).unwrap());
        }
        for cut in [1, 2, 4, 5, 6, 299, 16_384, wire.len()] {
            let mut rest = Rest::default();
            let mut found = Vec::new();
            for piece in wire.chunks(cut) {
                rest.push(Bytes::copy_from_slice(piece));
                while let Some(message) = rest.message().unwrap() {
                    found.push(message.to_vec());
                }
            }
            assert!(rest.is_empty(), "cut at {cut}");
            assert_eq!(found, messages, "cut at {cut}");
        }
    }

    /// Answers one call well on each connection, by nothing, and goes on to the next when its client has gone.
    async fn answer_one_each(listener: tokio::net::TcpListener) {
        while let Ok((io, _)) = listener.accept().await {
            let mut connection = h2::server::handshake(io).await.unwrap();
            let (_, mut reply) = connection.accept().await.unwrap().unwrap();
            let mut stream = reply.send_response(http::Response::new(()), false).unwrap();
            stream.send_data(frame_bytes(b"").unwrap(), false).unwrap();
            stream.send_trailers(HeaderMap::new()).unwrap();
            // What else is asked is not answered: the connection ends.
            while let Some(Ok((_, mut reply))) = connection.accept().await {
                reply.send_reset(h2::Reason::REFUSED_STREAM);
            }
        }
    }

    #[tokio::test]
    async fn a_connection_is_called_by_again_only_soon_and_after_a_call_that_went_to_its_end() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let channel = Channel::to(listener.local_addr().unwrap());
        let _answering = clock::spawn(answer_one_each(listener));
        let call = || channel.unary("/a.B/C", frame_bytes(b"what").unwrap());
        channel.ready_to_call().await.unwrap();
        assert!(call().await.is_ok(), "on a fresh connection");
        assert!(call().await.is_err(), "on the same");
        assert!(call().await.is_ok(), "on a fresh one, for the last is of no use any more");
        for (_, used) in channel.calls.lock().await.iter_mut() {
            *used = used.checked_sub(UNHEARD).unwrap();
        }
        assert!(call().await.is_ok(), "on a fresh one, for nobody has heard the last for long");
    }

    #[tokio::test]
    async fn why_a_call_went_wrong_is_said() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let channel = Channel::to(listener.local_addr().unwrap());
        let refusing = async {
            // It is asked on a connection for calls, and once more on one for streams, of which headers are read.
            for _ in 0..2 {
                let (io, _) = listener.accept().await.unwrap();
                let mut connection = h2::server::handshake(io).await.unwrap();
                let (_, mut reply) = connection.accept().await.unwrap().unwrap();
                let refusal =
                    http::Response::builder().header("grpc-status", "5").header("grpc-message", "nobody");
                reply.send_response(refusal.body(()).unwrap(), true).unwrap();
                clock::spawn(async move { while connection.accept().await.is_some() {} });
            }
        };
        let (refused, ()) = tokio::join!(channel.unary("/a.B/C", frame_bytes(b"who").unwrap()), refusing);
        assert_eq!(refused.unwrap_err().to_string(), "/a.B/C: status 5: nobody");
    }

    #[test]
    fn what_is_compressed_is_no_message() {
        let mut rest = Rest::default();
        rest.push(Bytes::from_static(&[1, 0, 0, 0, 1, 9]));
        assert!(rest.message().is_err());
    }
}
