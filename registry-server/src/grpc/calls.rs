//! Which service a call is for, and its deadline.
//!
//! Nearly all calls are for the registry, and go there without a router in between; `Subscribe` also without tonic's own way of
//! answering, which would keep buffers for each stream (see [`answer`]).

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use hyper::{HeaderMap, Request, Response, body::Incoming};
use registry_proto::{
    Frame, FrameCodec,
    server::registry_server::{Registry, RegistryServer},
    v1::SubscribeRequest,
};
use tokio::time::{Sleep, sleep};
use tonic::{
    Status, Streaming, body::Body, codec::Codec, codegen::Service, metadata::MetadataMap,
    server::NamedService, service::Routes,
};

use super::{RegistryService, streams::answer};

/// Hours, the largest unit of a deadline, are at most this many seconds each.
const HOUR: u64 = 3_600;

const SUBSCRIBE: &str = "/registry.v1.Registry/Subscribe";

/// The services of one server. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Calls {
    service: RegistryService,
    registry: RegistryServer<RegistryService>,
    others: Routes,
    max_decoded: usize,
}

impl Calls {
    /// The registry, whose requests are `max_decoded` bytes at most, and whatever else is offered.
    pub(crate) fn new(service: RegistryService, max_decoded: usize, others: Routes) -> Self {
        let registry = RegistryServer::new(service.clone()).max_decoding_message_size(max_decoded);
        Self { service, registry, others: others.prepare(), max_decoded }
    }

    fn subscribe(&self, request: Request<Body>) -> BoxAnswer {
        let (parts, body) = request.into_parts();
        let decoder = FrameCodec::<Frame, SubscribeRequest>::default().decoder();
        let requests = Streaming::new_request(decoder, body, None, Some(self.max_decoded));
        let metadata = MetadataMap::from_headers(parts.headers);
        let request = tonic::Request::from_parts(metadata, parts.extensions, requests);
        let service = self.service.clone();
        Box::pin(async move {
            let subscribed = service.subscribe(request).await;
            Ok(subscribed.map_or_else(Status::into_http, |response| answer(response.into_inner())))
        })
    }
}

impl hyper::service::Service<Request<Incoming>> for Calls {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answering;

    fn call(&self, request: Request<Incoming>) -> Answering {
        let deadline = timeout(request.headers()).map(|left| Box::pin(sleep(left)));
        let request = request.map(Body::new);
        let path = request.uri().path();
        // What says that it is compressed is refused as in every other call.
        let answer: BoxAnswer = if path == SUBSCRIBE && !request.headers().contains_key("grpc-encoding") {
            self.subscribe(request)
        } else if is_of(path, RegistryServer::<RegistryService>::NAME) {
            self.registry.clone().call(request)
        } else {
            Box::pin(self.others.clone().call(request))
        };
        Answering { answer, deadline }
    }
}

type BoxAnswer = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

/// A call that is answered, or fails at its deadline. Of a stream the deadline is that of its beginning, and the client ends it.
pub(crate) struct Answering {
    answer: BoxAnswer,
    deadline: Option<Pin<Box<Sleep>>>,
}

impl Future for Answering {
    type Output = Result<Response<Body>, Infallible>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let Poll::Ready(answer) = self.answer.as_mut().poll(cx) {
            return Poll::Ready(answer);
        }
        let passed = self.deadline.as_mut().is_some_and(|deadline| deadline.as_mut().poll(cx).is_ready());
        if !passed {
            return Poll::Pending;
        }
        let status =
            Status::deadline_exceeded("the call's deadline has passed; what it asked for may still be done");
        Poll::Ready(Ok(status.into_http()))
    }
}

/// Whether a path is `/SERVICE/..`.
fn is_of(path: &str, service: &str) -> bool {
    let method = path.strip_prefix('/').and_then(|path| path.strip_prefix(service));
    method.is_some_and(|method| method.starts_with('/'))
}

/// The header `grpc-timeout` as gRPC over HTTP/2 has it: up to eight digits and a unit. What is not of that form is no deadline.
fn timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(count * HOUR),
        "M" => Duration::from_secs(count * 60),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_is_read_in_all_its_units_and_nothing_else_is_one() {
        let read = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-timeout", text.parse().expect("a header"));
            timeout(&headers)
        };
        for (text, seconds, nanos) in [
            ("2H", 7_200, 0),
            ("3M", 180, 0),
            ("99999999S", 99_999_999, 0),
            ("82m", 0, 82_000_000),
            ("5u", 0, 5_000),
            ("7n", 0, 7),
            ("0m", 0, 0),
            ("99999999H", 99_999_999 * 3_600, 0),
        ] {
            assert_eq!(read(text), Some(Duration::new(seconds, nanos)), "{text}");
        }
        for text in ["", "S", "1", "1s", "-1S", "+1S", "1.5S", "123456789S", "1 S", "S1"] {
            assert_eq!(read(text), None, "{text:?}");
        }
        assert_eq!(timeout(&HeaderMap::new()), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_whose_deadline_has_passed_says_so() {
        let answering = |answer, left| Answering { answer, deadline: Some(Box::pin(sleep(left))) };
        let late: BoxAnswer = Box::pin(std::future::pending());
        let Ok(answer) = answering(late, Duration::from_secs(1)).await;
        assert_eq!(answer.headers()["grpc-status"], "4");
        let in_time: BoxAnswer = Box::pin(async { Ok(Response::new(Body::empty())) });
        let Ok(answer) = answering(in_time, Duration::ZERO).await;
        assert!(!answer.headers().contains_key("grpc-status"), "an answer that is there is given");
    }

    #[test]
    fn a_service_is_named_by_the_whole_first_part_of_a_path() {
        assert!(is_of("/a.B/C", "a.B"));
        for path in ["/a.Bc/C", "/a.B", "a.B/C", "//a.B/C", "", "/"] {
            assert!(!is_of(path, "a.B"), "{path}");
        }
    }
}
