//! What goes onto the wire, piece by piece.

use super::*;

fn said(mut answer: Answer) -> Vec<Bytes> {
    let cx = &mut Context::from_waker(std::task::Waker::noop());
    let mut pieces = Vec::new();
    loop {
        let Poll::Ready(frame) = Pin::new(&mut answer).poll_frame(cx) else { panic!("it never waits") };
        let frame = frame.expect("trailers come first").expect("it never fails");
        match frame.into_data() {
            Ok(piece) => pieces.push(piece),
            Err(frame) => {
                let trailers = frame.into_trailers().expect("trailers");
                assert_eq!((trailers.len(), &trailers["grpc-status"]), (1, &HeaderValue::from_static("0")));
                assert!(answer.is_end_stream());
                assert!(matches!(Pin::new(&mut answer).poll_frame(cx), Poll::Ready(None)));
                return pieces;
            }
        }
        assert!(!answer.is_end_stream());
    }
}

#[test]
fn a_message_is_one_piece() {
    let message = String::from("abc");
    assert_eq!(said(Answer::message(&message)), [&b"\0\0\0\0\x05\x0a\x03abc"[..]]);
    assert_eq!(said(Answer::message(&())), [&b"\0\0\0\0\0"[..]], "an empty one has a head");
}

#[test]
fn what_is_short_is_one_piece_and_what_is_long_goes_out_as_the_very_bytes_that_are_shared() {
    let frame = |shared: usize| Frame {
        prefix: Bytes::from_static(b"pp"),
        shared: vec![b's'; shared].into(),
        more: vec![Bytes::from_static(b"m"), Bytes::new()],
        suffix: Bytes::from_static(b"x"),
    };
    assert_eq!(said(Answer::frame(&frame(3))), [&b"\0\0\0\0\x07ppsssmx"[..]]);
    assert_eq!(said(Answer::frame(&Frame::default())), [&b"\0\0\0\0\0"[..]]);
    let long = frame(LONG);
    let shared = long.shared.as_ptr();
    let pieces = said(Answer::frame(&long));
    assert_eq!(pieces[0], &b"\0\0\0\x10\x04pp"[..]);
    assert_eq!((pieces[1].as_ptr(), pieces[1].len()), (shared, LONG), "nobody copied it");
    assert_eq!(pieces[2..], [&b"m"[..], b"x"]);
}
