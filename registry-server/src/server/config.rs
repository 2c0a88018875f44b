//! What can be set about a server.

use std::{fmt, path::PathBuf, time::Duration};

use crate::{core, grpc::GrpcSettings, hub::HubSettings};

/// Where the registry keeps what it holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Storage {
    /// In the data directory, on disk before an answer.
    #[default]
    Embedded,
    /// Nowhere: for tests and for trying out.
    Memory,
}

impl fmt::Display for Storage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Embedded => "embedded",
            Self::Memory => "memory",
        })
    }
}

/// A server's settings. The default is what the binary runs with, in the directory `registry-data`.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where the registry keeps what it holds.
    pub storage: Storage,
    /// The embedded store's directory.
    pub data_dir: PathBuf,
    /// The embedded store's log is folded into a new base after so many bytes, or as many as the base has if that is more.
    /// 16 MiB.
    pub segment_bytes: u64,
    /// The rules.
    pub core: core::Settings,
    /// Publishing. The bounds of the recent log are also those of what the embedded store keeps of it for a restart.
    pub hub: HubSettings,
    /// The wire.
    pub grpc: GrpcSettings,
    /// How long calls in flight may take to end when the server stops. Watchers are asked to leave within half of it.
    pub grace: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            storage: Storage::Embedded,
            data_dir: "registry-data".into(),
            segment_bytes: 16 << 20,
            core: core::Settings::default(),
            hub: HubSettings::default(),
            grpc: GrpcSettings::default(),
            grace: Duration::from_secs(10),
        }
    }
}
