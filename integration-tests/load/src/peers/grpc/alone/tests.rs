//! Streams that are alone on their connection, beside a server that holds them to the protocol and servers that do not keep to it.

use std::{future::poll_fn, task::Poll, time::Duration};

use h2::server;
use http::{HeaderMap, Response};
use tokio::{net::TcpListener, time::timeout};

use super::*;
use crate::{clock, peers::grpc::frame_bytes};

/// The first stream of a connection.
const STREAM: u32 = 1;

/// A server of a library that holds its clients to the protocol: answers the question with itself and with these, and pings once.
async fn serve(listener: TcpListener, messages: Vec<Bytes>) -> std::result::Result<(), h2::Error> {
    let (io, _) = listener.accept().await.expect("a client");
    let mut connection = server::handshake(io).await?;
    let mut pings = connection.ping_pong().expect("asked for once");
    let (request, mut reply) = connection.accept().await.expect("a call")?;
    assert_eq!((request.uri().path(), &request.headers()["te"]), ("/a.B/C", &"trailers".parse().unwrap()));
    let mut asked = request.into_body();
    let call = async {
        let mut stream = reply.send_response(Response::new(()), false)?;
        let question = asked.data().await.expect("a question")?;
        pings.ping(h2::Ping::opaque()).await?;
        for mut message in [question].into_iter().chain(messages) {
            while !message.is_empty() {
                stream.reserve_capacity(message.len());
                let room = poll_fn(|cx| stream.poll_capacity(cx)).await.expect("a client that reads")?;
                stream.send_data(message.split_to(room.min(message.len())), false)?;
            }
        }
        stream.send_trailers(HeaderMap::new())
    };
    let mut call = std::pin::pin!(call);
    let mut answered = false;
    poll_fn(|cx| {
        answered = answered || call.as_mut().poll(cx)?.is_ready();
        connection.poll_closed(cx)
    })
    .await
}

#[tokio::test]
async fn what_a_server_says_is_read_pings_are_answered_and_windows_refilled() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let question = frame_bytes(b"what").expect("short");
    // More than all windows together, in messages that lie in many frames, and short ones after them.
    let lengths = [1 << 20, 3 << 20, 5 << 20, 70_000, 0, 3, 0];
    let messages = lengths.map(|length| frame_bytes(&vec![7; length]).expect("not too long"));
    let serving = clock::spawn(serve(listener, messages.into()));
    let reading = async {
        let mut alone = Alone::connect(address).await.expect("a server");
        alone.ask("/a.B/C", Some(question), false).await.expect("a server");
        alone.begun().await.expect("an answer");
        assert_eq!(&alone.message().await.expect("itself").expect("itself")[..], b"what");
        for length in lengths {
            let message = alone.message().await.expect("a message").expect("a message");
            assert!(message.len() == length && message.iter().all(|byte| *byte == 7), "of {length}");
        }
        assert!(alone.message().await.expect("an end in good order").is_none());
    };
    let both = async { tokio::join!(serving, reading).0 };
    let served = timeout(Duration::from_mins(1), both).await.expect("nothing hangs");
    served.expect("no panic").expect("a client that keeps to the protocol");
}

/// What a client of these frames is told in the end, and what it said after its hello.
async fn told(frames: &[(u8, u8, u32, &[u8])]) -> (Vec<Bytes>, String, BytesMut) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let mut said = BytesMut::new();
    for (kind, flags, stream, payload) in frames {
        put_frame(&mut said, *kind, *flags, *stream, payload);
    }
    let serving = async {
        let (mut io, _) = listener.accept().await.expect("a client");
        io.write_all(&said).await.expect("a client that reads");
        io.shutdown().await.expect("a client that reads");
        let mut heard = BytesMut::new();
        while io.read_buf(&mut heard).await.is_ok_and(|read| read > 0) {}
        heard
    };
    let reading = async {
        let mut alone = Alone::connect(address).await.expect("a server");
        alone.ask("/a.B/C", None, false).await.expect("a server");
        let mut messages = Vec::new();
        loop {
            match alone.message().await {
                Ok(Some(message)) => messages.push(message),
                Ok(None) => return (messages, "ended".to_owned()),
                Err(failure) => return (messages, failure.to_string()),
            }
        }
    };
    let both = async { tokio::join!(serving, reading) };
    let (mut heard, (messages, end)) = timeout(Duration::from_mins(1), both).await.expect("nothing hangs");
    let mut hello = heard.split_to(PREFACE.len());
    assert_eq!(&hello.split()[..], PREFACE);
    for kind in [SETTINGS, WINDOW_UPDATE, HEADERS] {
        assert_eq!(Frame::take(&mut heard).expect("not too long").expect("a frame").kind, kind);
    }
    (messages, end, heard)
}

#[tokio::test]
async fn what_a_server_may_say_besides_is_answered_or_passed_over() {
    const UNKNOWN: u8 = 0x20;
    let message = frame_bytes(b"yes").expect("short");
    let padded = [&[2], &message[..], &[0, 0]].concat();
    let (messages, end, mut heard) = told(&[
        (SETTINGS, 0, 0, &[]),
        (SETTINGS, ACK, 0, &[]),
        (UNKNOWN, 0xff, 0, b"whatever"),
        (HEADERS, END_HEADERS, STREAM, &[0x88]),
        (PING, 0, 0, b"are you?"),
        (PING, ACK, 0, b"not ours"),
        (DATA, PADDED, STREAM, &padded),
        (DATA, 0, STREAM, &message),
    ])
    .await;
    assert_eq!(messages, [&b"yes"[..], b"yes"]);
    assert_eq!(end, "/a.B/C: the server has closed the connection");
    let mut said = Vec::new();
    while let Some(frame) = Frame::take(&mut heard).expect("not too long") {
        said.push((frame.kind, frame.flags, frame.payload));
    }
    assert_eq!(said, [(SETTINGS, ACK, Bytes::new()), (PING, ACK, Bytes::from_static(b"are you?"))]);
}

#[tokio::test]
async fn how_a_server_ends_it_is_said() {
    let refused = 7_u32.to_be_bytes();
    let away = [&[0, 0, 0, 1][..], &11_u32.to_be_bytes(), b"too much"].concat();
    for (frame, end) in [
        ((DATA, PADDED, STREAM, &[9, 1, 2][..]), "the server sends more padding than data"),
        (
            (RST_STREAM, 0, STREAM, &refused),
            "the server has reset the stream (refused stream before processing any application logic)",
        ),
        ((RST_STREAM, 0, STREAM, &[]), "the server has reset the stream (it does not say why)"),
        (
            (GOAWAY, 0, 0, &away),
            "the server closes the connection (detected excessive load generating behavior)",
        ),
        ((SETTINGS, 0, 0, &[0, 1, 0, 0, 0xf]), "the server sends half a setting"),
        (
            (SETTINGS, 0, 0, &[0, 1, 0, 0, 0xf, 0xff]),
            "the server keeps less of headers than is usual, which this tool cannot do",
        ),
    ] {
        assert_eq!(told(&[frame]).await.1, format!("/a.B/C: {end}"));
    }
    assert_eq!(told(&[(HEADERS, END_HEADERS | END_STREAM, STREAM, &[0x88])]).await.1, "ended");
    let part = frame_bytes(b"yes").expect("short").split_to(6);
    let (_, end, _) = told(&[(DATA, END_STREAM, STREAM, &part)]).await;
    assert_eq!(end, "/a.B/C: the server has ended it within a message");
    assert!(
        told(&[(DATA, PADDED, STREAM, &[])]).await.1.starts_with("/a.B/C: "),
        "padding without its length"
    );
}

#[test]
fn a_frame_is_taken_whole_or_not_at_all_and_one_too_long_is_refused() {
    let mut wire = BytesMut::new();
    put_frame(&mut wire, DATA, END_STREAM, STREAM, b"abc");
    let whole = wire.len();
    let mut part = wire.split_to(whole - 1);
    assert!(Frame::take(&mut part).is_ok_and(|frame| frame.is_none()) && part.len() == whole - 1);
    part.unsplit(wire);
    let frame = Frame::take(&mut part).expect("not too long").expect("a frame");
    assert_eq!((frame.kind, frame.flags, frame.stream), (DATA, END_STREAM, STREAM));
    assert_eq!(&frame.payload[..], b"abc");
    let mut long = BytesMut::from(&[0, 0x40, 1, DATA, 0, 0, 0, 0, 1][..]);
    assert!(Frame::take(&mut long).is_err_and(|TooLong(length)| length == 0x4001));
}

/// A server of a library that answers each question with itself twice as long, or with nothing at all if it is empty.
async fn double(listener: TcpListener) -> std::result::Result<Vec<(String, usize)>, h2::Error> {
    let (io, _) = listener.accept().await.expect("a client");
    io.set_nodelay(true).expect("a socket");
    let mut connection = server::handshake(io).await?;
    let mut asked = Vec::new();
    while let Some(call) = connection.accept().await {
        let (request, mut reply) = call?;
        let (head, mut body) = request.into_parts();
        assert_eq!((&head.method, head.uri.scheme_str()), (&http::Method::POST, Some("http")));
        assert_eq!(head.headers[http::header::CONTENT_TYPE], "application/grpc");
        assert_eq!((head.headers["te"].as_bytes(), head.headers.len()), (&b"trailers"[..], 2));
        let answer = async {
            let mut question = BytesMut::new();
            while let Some(data) = body.data().await {
                let data = data?;
                body.flow_control().release_capacity(data.len())?;
                question.put(data);
            }
            let mut stream = reply.send_response(Response::new(()), false)?;
            if question.len() > 5 {
                let answer = [&question[5..], &question[5..]].concat();
                stream.send_data(frame_bytes(&answer).expect("short"), false)?;
            }
            stream.send_trailers(HeaderMap::new())?;
            Ok(question.len())
        };
        let mut answer = std::pin::pin!(answer);
        let length = poll_fn(|cx| match answer.as_mut().poll(cx) {
            Poll::Pending => connection.poll_closed(cx).map_ok(|()| 0),
            ready @ Poll::Ready(_) => ready,
        });
        asked.push((head.uri.path().to_owned(), length.await?));
    }
    Ok(asked)
}

#[tokio::test]
async fn calls_go_one_after_the_other_whatever_they_ask_in_all() {
    // More than the window of all streams together, by more methods than are remembered.
    const CALLS: usize = 200;
    const METHODS: [&str; 25] = [
        "/a/0", "/a/1", "/a/2", "/a/3", "/a/4", "/a/5", "/a/6", "/a/7", "/a/8", "/a/9", "/b/0", "/b/1",
        "/b/2", "/b/3", "/b/4", "/b/5", "/b/6", "/b/7", "/b/8", "/b/9", "/c/0", "/c/1", "/c/2", "/c/3",
        "/c/4",
    ];
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let serving = clock::spawn(double(listener));
    let calling = async {
        let mut alone = Alone::connect(address).await.expect("a server");
        let (mut asked, mut failures) = (Vec::new(), 0);
        for call in 0..CALLS {
            let method = METHODS[call * 7 % METHODS.len()];
            let question = vec![u8::try_from(call).expect("few"); call * 50 % 10_000];
            let framed = frame_bytes(&question).expect("short");
            asked.push((method.to_owned(), framed.len()));
            if let Some(answer) = alone.unary(method, framed).await.expect("an end in good order") {
                assert_eq!(answer, [&question[..], &question].concat(), "call {call}");
            } else {
                assert!(question.is_empty(), "call {call}");
                failures += 1;
            }
        }
        // Of what was not asked, the server remembers nothing.
        let long = frame_bytes(&[0; 16_384]).expect("short");
        assert!(alone.unary("/never", long).await.is_err_and(|it| it.to_string().contains("longer than")));
        for method in ["/never", "/a/0"] {
            let framed = frame_bytes(b"well?").expect("short");
            asked.push((method.to_owned(), framed.len()));
            let answer = alone.unary(method, framed).await.expect("an answer");
            assert_eq!(answer.expect("an answer"), b"well?well?"[..]);
        }
        (asked, failures)
    };
    let (served, (asked, failures)) =
        timeout(Duration::from_mins(1), async { tokio::join!(serving, calling) })
            .await
            .expect("nothing hangs");
    assert_eq!(failures, 1);
    assert_eq!(served.expect("no panic").expect("a client that keeps to the protocol"), asked);
}
