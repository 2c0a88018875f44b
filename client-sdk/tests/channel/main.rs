//! The channel under real servers, misbehaving ones, and a view that changes.
#![allow(clippy::disallowed_methods)] // a test may spawn

mod frames;
mod h2_server;
mod kit;
mod outlier_share;
mod scripted;

mod channel_aperture;
mod channel_calls;
mod channel_changes;
mod channel_connecting;
mod channel_each_policy;
mod channel_failures;
mod channel_foreign;
mod channel_frames;
mod channel_hash_keys;
mod channel_hostile_peers;
mod channel_keepalive;
mod channel_lanes;
mod channel_limits;
mod channel_metrics;
mod channel_outliers;
mod channel_places;
mod channel_policies;
mod channel_reported_load;
mod channel_retries;
mod channel_retries_streaming;
mod channel_shaping;
mod channel_storms;
#[cfg(feature = "tls")]
mod channel_tls;

use std::sync::Arc;

use client_sdk::{
    channel::{BalancedChannel, ChannelBuilder, ChannelError},
    model::Endpoint,
};
use tonic::Status;

use crate::kit::Fleet;

fn builder(fleet: &Fleet) -> ChannelBuilder<Fleet> {
    BalancedChannel::builder(Arc::new(fleet.clone()), Endpoint::new("greeter"))
}

fn typed(status: &Status) -> &ChannelError {
    ChannelError::of(status).unwrap_or_else(|| panic!("not the channel's own: {status:?}"))
}
