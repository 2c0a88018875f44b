//! What the README says is so: its commands run, its requests work, its programs are the examples' own, and its table
//! of settings is the server's.

mod programs;
mod requests;
mod text;

use std::time::Duration;

use client_sdk::{model::Address, runtime::Runtime as SdkRuntime};
use registry_server::{
    runtime::Runtime,
    server::{Config, run},
};
use tokio::net::TcpListener;
use tonic::transport::server::TcpIncoming;

/// Nothing here takes long; whatever does hangs.
const PATIENCE: Duration = Duration::from_mins(1);

/// A registry on the embedded store, as the binary runs it.
struct RunningRegistry {
    address: Address,
    _task: client_sdk::runtime::Task,
    _directory: tempfile::TempDir,
}

impl RunningRegistry {
    async fn start() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address").into();
        let config = Config { data_dir: directory.path().join("data"), ..Config::default() };
        let serving = async move {
            let incoming = TcpIncoming::from(listener);
            let never = std::future::pending();
            run(config, incoming, Runtime::tokio(), never, |_| {}).await.expect("a registry");
        };
        Self { address, _task: SdkRuntime::tokio().spawn(serving), _directory: directory }
    }
}

/// A file of the workspace.
fn file(path: &str) -> String {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
    std::fs::read_to_string(root.join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The README's blocks in this language.
fn blocks(language: &str) -> Vec<String> {
    let (readme, mut blocks) = (file("README.md"), Vec::new());
    // Outside and inside of blocks by turns.
    for block in readme.split("```").skip(1).step_by(2) {
        let (of, text) = block.split_once('\n').expect("a block has lines");
        if of == language {
            blocks.push(text.to_owned());
        }
    }
    assert!(!blocks.is_empty(), "the README has no {language}");
    blocks
}
