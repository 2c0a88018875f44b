//! One call: what is known of it before anything is sent, and its attempts.
//!
//! Which attempts there are is the business of [`crate::retry`], how one is made that of `attempt`, and how an instance is
//! chosen and waited for that of [`crate::members`].

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use http::{Request, Response};
use http_body::Body;
use tonic::Status;

use super::{
    BalancedChannel, Inner, attempt::Call, error::ChannelError, request_body::RequestBody, request_head,
    response_body::ResponseBody,
};
use crate::{
    balance::PickContext,
    members::{Deadline, Search},
    retry,
    runtime::BoxFuture,
};

impl tower::Service<Request<tonic::body::Body>> for BalancedChannel {
    type Response = Response<ResponseBody>;
    type Error = Status;
    type Future = BoxFuture<'static, Result<Response<ResponseBody>, Status>>;

    /// Always ready: waiting for an instance happens in the call.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<tonic::body::Body>) -> Self::Future {
        // Keeps the driver and its connections alive while the call is made.
        let inner = Arc::clone(&self.inner);
        Box::pin(async move { run(&inner, request).await.map_err(Status::from) })
    }
}

async fn run(
    inner: &Inner,
    request: Request<tonic::body::Body>,
) -> Result<Response<ResponseBody>, ChannelError> {
    let (mut head, body) = request.into_parts();
    let shared = &inner.shared;
    let now = shared.runtime.now();
    let deadline = request_head::grpc_timeout(&head.headers)
        .map(|timeout| Deadline { timeout, at: now.saturating_add(timeout) });
    let random = || shared.runtime.random();
    let key = inner.settings.hash_keys.key(&head.extensions, &head.headers, shared.endpoint.hash_key, random);
    request_head::prepare(&mut head, &body.size_hint());
    let context = PickContext { hash_key: key, ..PickContext::new() }.now(now);
    let course = inner.plan.course(head.uri.path());
    let body = RequestBody::new(body, inner.settings.replay_limit);
    let mut search = Search::new(Arc::clone(shared), context, deadline);
    let call = Call::new(inner, head, body, deadline);
    retry::run(&mut search, &call, &inner.plan, course).await?
}
