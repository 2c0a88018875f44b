//! The pool whose members are a service's registered instances.
//!
//! Owns nothing but the name: it is the [layer](crate::layer) with an [`Aperture`], which decides how many of the instances it
//! uses by the demand, as the steady pool decides how many services there are.
//!
//! Under tonic the same pool is a channel: [`ChannelBuilder::aperture`](crate::channel::ChannelBuilder::aperture).

use std::sync::Arc;

use crate::{
    discover::Discover,
    layer::{LoadBalanceBuilder, LoadBalanceLayer, LoadBalanced},
    members::Aperture,
    model::Endpoint,
};

/// A pool over the instances of a service: how many of them it uses is decided by the demand. Made by [`registry_pool`].
///
/// [`LoadBalanced::snapshot`] shows what it uses, and why that many, in
/// [`Snapshot::aperture`](crate::members::Snapshot::aperture).
pub type RegistryPool<S, Req, Res> = LoadBalanced<S, Req, Res>;

/// Builds a [`RegistryPool`] over the instances that `discover` names for `endpoint`.
///
/// - It grows by making a service for further instances, in the caller's own order
///   ([`LoadBalanceBuilder::caller`]), and shrinks by draining: a service that is not needed gets no new
///   request, finishes what it has, and is dropped then.
/// - It follows the registry: an instance that leaves it, drains, goes down or gets weight 0 gets no new request and is replaced;
///   so is one that cannot be connected, or fails too much.
/// - It never holds an instance that left the registry: its service gets no further request, finishes those that it has,
///   however long they take, and is dropped with the last of them, or at once if it has none.
/// - It makes one service for each instance, however busy that is.
/// - The policy chooses among those in use. One that connects on demand (the hashes) leaves nothing to decide: with one the
///   aperture is ignored, see [`LoadBalanceBuilder::aperture`].
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
/// use std::{convert::Infallible, sync::Arc};
/// use client_sdk::{Address, Endpoint, StaticDiscover, members::Aperture, pool::registry_pool};
/// use tower::{Service, service_fn};
///
/// // Makes a service for an address: a real one would connect to it.
/// let connect = service_fn(|address: Address| async move {
///     let greet = move |name: &'static str| {
///         let greeting = format!("hello {name}, this is {address}");
///         async move { Ok::<_, Infallible>(greeting) }
///     };
///     Ok::<_, Infallible>(service_fn(greet))
/// });
/// let peers = Arc::new(StaticDiscover::parse(["10.0.0.7:8080", "10.0.0.8:8080", "10.0.0.9:8080"])?);
/// let aperture = Aperture::builder().min(1).target(8).build()?;
/// let mut pool = registry_pool(peers, Endpoint::new("greeter"), aperture).service(connect);
/// pool.call("caller").await?;
/// assert_eq!(pool.snapshot().aperture.map(|aperture| aperture.size), Some(1));
/// # Ok(()) }
/// ```
pub fn registry_pool<D: Discover, Req, Res>(
    discover: Arc<D>,
    endpoint: Endpoint,
    aperture: Aperture,
) -> LoadBalanceBuilder<D, Req, Res> {
    LoadBalanceLayer::builder(discover, endpoint).aperture(aperture)
}
