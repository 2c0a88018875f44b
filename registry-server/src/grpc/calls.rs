//! Which service a call is for, and its deadline.
//!
//! Nearly all calls are for the registry, and go there without a router in between, and those with one request and one answer also
//! without tonic's own way of reading and answering (see [`unary`]); `Subscribe` and `KeepAlive` without its way of answering, which
//! would keep buffers for each stream (see [`answer`]), and `KeepAlive` without its way of reading (see [`Requests`]). What says how it is compressed goes tonic's way, and is refused there.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, Request, Response};
use http_body::Body as HttpBody;
use prost::Message;
use registry_proto::{
    Frame, FrameCodec,
    server::registry_server::{Registry, RegistryServer},
    v1::{KeepAliveResponse, SubscribeRequest},
};
use tokio::time::{Sleep, sleep};
use tokio_stream::StreamExt;
use tonic::{
    Status, Streaming, body::Body, codec::Codec, codegen::Service, metadata::MetadataMap,
    server::NamedService, service::Routes,
};

use super::{
    RegistryService,
    streams::{Requests, answer},
    unary::{self, Answer},
};

static ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");
static TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// Hours, the largest unit of a deadline, are at most this many seconds each.
const HOUR: u64 = 3_600;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The services of one server. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Calls {
    service: Arc<RegistryService>,
    registry: RegistryServer<RegistryService>,
    others: Routes,
    max_decoded: usize,
}

impl Calls {
    /// The registry, whose requests are `max_decoded` bytes at most, and whatever else is offered.
    pub(crate) fn new(service: RegistryService, max_decoded: usize, others: Routes) -> Self {
        let service = Arc::new(service);
        let registry = RegistryServer::from_arc(Arc::clone(&service)).max_decoding_message_size(max_decoded);
        Self { service, registry, others: others.prepare(), max_decoded }
    }

    /// Answers a call, or says that its deadline has passed.
    pub(crate) fn answer<B>(&self, request: Request<B>) -> Answering
    where
        B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<BoxError>,
    {
        let deadline = timeout(request.headers()).map(|left| Box::pin(sleep(left)));
        Answering { answer: self.begin(request), deadline }
    }

    fn begin<B>(&self, request: Request<B>) -> BoxAnswer
    where
        B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<BoxError>,
    {
        let path = request.uri().path();
        let Some(method) = method_of(path, RegistryServer::<RegistryService>::NAME) else {
            return Box::pin(self.others.clone().call(request.map(Body::new)));
        };
        if request.headers().contains_key(&ENCODING) {
            return self.registry.clone().call(request.map(Body::new));
        }
        match method {
            "Register" => self.unary(request, |to, it| to.register(it), Answer::message),
            "Discover" => self.unary(request, |to, it| to.discover(it), Answer::frame),
            "Deregister" => self.unary(request, |to, it| to.deregister(it), Answer::message),
            "SetOverride" => self.unary(request, |to, it| to.set_override(it), Answer::message),
            "ListOverrides" => self.unary(request, |to, it| to.list_overrides(it), Answer::message),
            "ResolveHold" => self.unary(request, |to, it| to.resolve_hold(it), Answer::message),
            "ListServices" => self.unary(request, |to, it| to.list_services(it), Answer::message),
            "WaitApplied" => self.unary(request, |to, it| to.wait_applied(it), Answer::message),
            "Explain" => self.unary(request, |to, it| to.explain(it), Answer::message),
            "Subscribe" => self.subscribe(request),
            "KeepAlive" => self.keep_alive(request),
            _ => self.registry.clone().call(request.map(Body::new)),
        }
    }

    /// Nobody asks for what the request says beside its message.
    fn unary<B, M, A>(&self, request: Request<B>, handler: Handler<M, A>, said: fn(&A) -> Answer) -> BoxAnswer
    where
        B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<BoxError>,
        M: Message + Default + 'static,
        A: 'static,
    {
        let (body, service, most) = (request.into_body(), Arc::clone(&self.service), self.max_decoded);
        Box::pin(async move {
            let answered = match unary::read(body, most).await {
                Ok(message) => handler(&service, tonic::Request::new(message)).await,
                Err(refused) => Err(refused),
            };
            Ok(answered.map_or_else(Status::into_http, |answer| said(answer.get_ref()).into_http()))
        })
    }

    fn subscribe<B>(&self, request: Request<B>) -> BoxAnswer
    where
        B: HttpBody<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let (parts, body) = request.into_parts();
        let decoder = FrameCodec::<Frame, SubscribeRequest>::default().decoder();
        let requests = Streaming::new_request(decoder, body, None, Some(self.max_decoded));
        let metadata = MetadataMap::from_headers(parts.headers);
        let request = tonic::Request::from_parts(metadata, parts.extensions, requests);
        let service = Arc::clone(&self.service);
        Box::pin(async move {
            let subscribed = service.subscribe(request).await;
            Ok(subscribed.map_or_else(Status::into_http, |response| answer(response.into_inner())))
        })
    }

    fn keep_alive<B>(&self, request: Request<B>) -> BoxAnswer
    where
        B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<BoxError>,
    {
        let renewed = self.service.renewals(Requests::new(request.into_body(), self.max_decoded));
        let framed = |answered: Result<KeepAliveResponse, _>| answered.map(|message| Frame::of(&message));
        let answered = renewed.map_or_else(Status::into_http, |answers| answer(answers.map(framed)));
        Box::pin(std::future::ready(Ok(answered)))
    }
}

/// A method of the registry with one request and one answer.
type Handler<M, A> =
    for<'a> fn(&'a RegistryService, tonic::Request<M>) -> BoxFuture<'a, Result<tonic::Response<A>, Status>>;

type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

type BoxAnswer = BoxFuture<'static, Result<Response<Body>, Infallible>>;

/// A call that is answered, or fails at its deadline. Of a stream the deadline is that of its beginning, and the client ends it.
pub(crate) struct Answering {
    answer: BoxAnswer,
    deadline: Option<Pin<Box<Sleep>>>,
}

impl Future for Answering {
    type Output = Response<Body>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let Poll::Ready(Ok(answer)) = self.answer.as_mut().poll(cx) {
            return Poll::Ready(answer);
        }
        let passed = self.deadline.as_mut().is_some_and(|deadline| deadline.as_mut().poll(cx).is_ready());
        if !passed {
            return Poll::Pending;
        }
        let status =
            Status::deadline_exceeded("the call's deadline has passed; what it asked for may still be done");
        Poll::Ready(status.into_http())
    }
}

/// What a path `/SERVICE/METHOD` calls.
fn method_of<'a>(path: &'a str, service: &str) -> Option<&'a str> {
    path.strip_prefix('/')?.strip_prefix(service)?.strip_prefix('/')
}

/// The header `grpc-timeout` as gRPC over HTTP/2 has it: up to eight digits and a unit. What is not of that form is no deadline.
fn timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(&TIMEOUT)?.to_str().ok()?;
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
mod tests;
