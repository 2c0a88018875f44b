//! The registry's wire protocol.
//!
//! | where | what |
//! |---|---|
//! | [`v1`] | the messages of `registry.v1`, and [`v1::registry_client`] |
//! | [`server`] | the service trait that a registry server implements |
//! | [`Frame`] | answers that are encoded once and shared between many callers |
//! | [`FrameCodec`], [`MessageCodec`] | how they, and all other messages, get into the transport's buffers |
//! | [`digest`] | the digest of a view, as both sides compute it |
//! | [`FILE_DESCRIPTOR_SET`] | for gRPC reflection |
//!
//! The comments in the `.proto` files are the reference: units, limits, defaults, errors.

mod codec;
pub mod digest;
mod frame;

pub use codec::{FrameCodec, FrameEncoder, MessageCodec};
pub use frame::Frame;

/// The generated messages of the package `registry.v1`, and its client.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic)]
pub mod v1 {
    include!(concat!(env!("OUT_DIR"), "/registry.v1.rs"));
}

/// The generated server side of `registry.v1.Registry`.
#[allow(missing_docs, unreachable_pub, clippy::all, clippy::pedantic)]
pub mod server {
    include!(concat!(env!("OUT_DIR"), "/registry_server.rs"));
}

/// The encoded `FileDescriptorSet` of `registry.v1` and all that it imports.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/registry.v1.bin"));
