//! One call's answer goes out: its head, its body as fast as the client takes it, its trailers.
//!
//! Of a body that the client has no room for two pieces are computed at most, one that waits in the connection and one in hand
//! (W10). It ends with the call, whichever side ends it: a client that resets its stream is not computed for any more.

use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    task::Poll,
};

use bytes::Bytes;
use h2::{Reason, SendStream, server::SendResponse};
use http::Response;
use http_body::Body as HttpBody;
use tonic::body::Body;
use tracing::debug;

/// Answers one call. What calls it when it is woken is the connection's task.
pub(super) async fn exchange<F>(answering: F, mut reply: SendResponse<Bytes>)
where
    F: Future<Output = Response<Body>>,
{
    let Some(response) = answered(answering, &mut reply).await else { return };
    let (head, body) = response.into_parts();
    let over = body.is_end_stream();
    match reply.send_response(Response::from_parts(head, ()), over) {
        Ok(_) if over => {}
        Ok(stream) => {
            if let Err(error) = send(body, stream).await {
                debug!("an answer was not sent to its end: {error}");
            }
        }
        Err(error) => {
            debug!("an answer was not sent: {error}");
            reply.send_reset(Reason::INTERNAL_ERROR);
        }
    }
}

/// `None`: the client does not want it any more.
async fn answered<F>(answering: F, reply: &mut SendResponse<Bytes>) -> Option<Response<Body>>
where
    F: Future<Output = Response<Body>>,
{
    let mut answering = pin!(answering);
    poll_fn(|cx| match answering.as_mut().poll(cx) {
        Poll::Ready(response) => Poll::Ready(Some(response)),
        Poll::Pending => reply.poll_reset(cx).map(|_| None),
    })
    .await
}

async fn send(mut body: Body, mut stream: SendStream<Bytes>) -> Result<(), h2::Error> {
    loop {
        let frame = poll_fn(|cx| match Pin::new(&mut body).poll_frame(cx) {
            Poll::Ready(frame) => Poll::Ready(Ok(frame)),
            Poll::Pending => match stream.poll_reset(cx) {
                Poll::Ready(reset) => Poll::Ready(Err(reset.map_or_else(|error| error, h2::Error::from))),
                Poll::Pending => Poll::Pending,
            },
        });
        let frame = match frame.await? {
            Some(Ok(frame)) => frame,
            Some(Err(status)) => {
                debug!("an answer broke off: {status}");
                stream.send_reset(Reason::INTERNAL_ERROR);
                return Ok(());
            }
            None => return stream.send_data(Bytes::new(), true),
        };
        match frame.into_data() {
            Ok(data) => {
                if !data.is_empty() {
                    room(&mut stream).await?;
                }
                let over = body.is_end_stream();
                stream.send_data(data, over)?;
                if over {
                    return Ok(());
                }
            }
            Err(frame) => {
                if let Ok(trailers) = frame.into_trailers() {
                    // What is reserved of the connection's window others may have.
                    stream.reserve_capacity(0);
                    return stream.send_trailers(trailers);
                }
            }
        }
    }
}

/// Waits until the client takes something. Only then is a piece handed over, so one at most waits in the connection; a reader that
/// takes nothing is reserved nothing beyond a byte, which others of its connection may want.
async fn room(stream: &mut SendStream<Bytes>) -> Result<(), h2::Error> {
    stream.reserve_capacity(1);
    while stream.capacity() == 0 {
        match poll_fn(|cx| stream.poll_capacity(cx)).await {
            Some(Ok(_)) => {}
            Some(Err(error)) => return Err(error),
            None => return Err(Reason::CANCEL.into()),
        }
    }
    Ok(())
}
