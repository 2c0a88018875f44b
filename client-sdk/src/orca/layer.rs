//! A tower layer that has a server report its load with every gRPC answer.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use http::{HeaderMap, Request, Response, header::CONTENT_TYPE};
use http_body::{Body, Frame, SizeHint};

use super::{LoadRecorder, report::TRAILER};
use crate::{balance::Outcome, channel::outcome};

/// Adds the trailer `endpoint-load-metrics-bin` (gRFC A51) to every gRPC answer of the services below it, and counts their
/// requests and failures. An answer that has the trailer already keeps its own.
///
/// ```no_run
/// # async fn example(greeter: tonic_health::pb::health_server::HealthServer<impl tonic_health::pb::health_server::Health>) -> Result<(), Box<dyn std::error::Error>> {
/// use client_sdk::orca::{LoadRecorder, LoadReportLayer};
/// let load = LoadRecorder::new();
/// let reporting = LoadReportLayer::new(load.clone()); // keep `load`, and set it from wherever the load is known
/// tonic::transport::Server::builder().layer(reporting).add_service(greeter).serve("0.0.0.0:8080".parse()?).await?;
/// # Ok(()) }
/// ```
///
/// A request counts when its answer ends, by its trailers or by the caller's giving up. Those fail whose status says that the
/// server could not serve (`UNKNOWN`, `DEADLINE_EXCEEDED`, `RESOURCE_EXHAUSTED`, `INTERNAL`, `UNAVAILABLE`, `DATA_LOSS`); codes that
/// speak of the request do not. What is not gRPC passes untouched and uncounted.
#[derive(Clone, Debug)]
pub struct LoadReportLayer {
    recorder: LoadRecorder,
}

/// A service whose answers report the load. Made by [`LoadReportLayer`].
#[derive(Clone, Debug)]
pub struct LoadReporting<S> {
    inner: S,
    recorder: LoadRecorder,
}

/// An answer to come. Made by [`LoadReporting`].
#[derive(Debug)]
pub struct ReportingFuture<F> {
    inner: Pin<Box<F>>,
    recorder: LoadRecorder,
}

/// An answer's body, which reports the load at its end. Made by [`LoadReporting`].
#[derive(Debug)]
pub struct ReportingBody<B> {
    inner: Pin<Box<B>>,
    /// `None`: not gRPC, or it has ended.
    call: Option<Counted>,
}

/// A request that counts once it has ended; given up counts as ended.
#[derive(Debug)]
struct Counted {
    /// `None` once it is counted.
    recorder: Option<LoadRecorder>,
}

impl LoadReportLayer {
    /// Reports what the recorder has.
    pub fn new(recorder: LoadRecorder) -> Self {
        Self { recorder }
    }

    /// What it reports.
    pub fn recorder(&self) -> &LoadRecorder {
        &self.recorder
    }
}

impl<S> tower::Layer<S> for LoadReportLayer {
    type Service = LoadReporting<S>;

    fn layer(&self, inner: S) -> LoadReporting<S> {
        LoadReporting { inner, recorder: self.recorder.clone() }
    }
}

impl<S, ReqBody, ResBody> tower::Service<Request<ReqBody>> for LoadReporting<S>
where
    S: tower::Service<Request<ReqBody>, Response = Response<ResBody>>,
    ResBody: Body,
{
    type Response = Response<ReportingBody<ResBody>>;
    type Error = S::Error;
    type Future = ReportingFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        ReportingFuture { inner: Box::pin(self.inner.call(request)), recorder: self.recorder.clone() }
    }
}

impl<F, B, E> Future for ReportingFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
{
    type Output = Result<Response<ReportingBody<B>>, E>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let response = ready!(self.inner.as_mut().poll(cx))?;
        let (mut head, body) = response.into_parts();
        let mut call = is_grpc(&head.headers).then(|| Counted { recorder: Some(self.recorder.clone()) });
        // A status among the headers: there will be no trailers.
        if head.headers.contains_key("grpc-status")
            && let Some(mut call) = call.take()
        {
            call.end(&mut head.headers);
        }
        let body = ReportingBody { inner: Box::pin(body), call };
        Poll::Ready(Ok(Response::from_parts(head, body)))
    }
}

impl<B: Body> Body for ReportingBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let mut polled = ready!(self.inner.as_mut().poll_frame(cx));
        if let Some(Ok(frame)) = &mut polled
            && let Some(trailers) = frame.trailers_mut()
            && let Some(mut call) = self.call.take()
        {
            call.end(trailers);
        }
        Poll::Ready(polled)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl Counted {
    fn end(&mut self, trailers: &mut HeaderMap) {
        if let Some(recorder) = self.recorder.take() {
            recorder.ended(outcome::of(trailers) == Outcome::Failure);
            if !trailers.contains_key(TRAILER) {
                trailers.insert(TRAILER, recorder.report().to_header());
            }
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        if let Some(recorder) = self.recorder.take() {
            recorder.ended(false);
        }
    }
}

fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
}
