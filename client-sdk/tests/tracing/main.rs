//! What is said at level `debug`. Alone in a process, where everybody listens before anything is said: whether a line of code is
//! heard is decided for the whole process when it is first reached, and by whoever reaches it.

// A test program: nobody reads its documentation, its helpers may panic and spawn, and other tests need more of them.
#![allow(missing_docs, unreachable_pub, dead_code, clippy::unwrap_used, clippy::disallowed_methods)]

mod aperture;
mod channel;
#[path = "../layer/kit.rs"]
mod hosts;
mod pool;
#[path = "../channel/kit.rs"]
mod servers;
#[path = "../pool/kit.rs"]
mod services;

use std::{
    io,
    sync::{Arc, LazyLock, Mutex},
};

static SAID: LazyLock<Said> = LazyLock::new(|| {
    let said = Said(Arc::default());
    let writer = said.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::DEBUG)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    tracing::subscriber::set_global_default(subscriber).expect("the first");
    said
});

/// What was said in this process.
#[derive(Clone)]
struct Said(Arc<Mutex<Vec<u8>>>);

impl io::Write for Said {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("unpoisoned").extend(text);
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Said {
    /// From the first call on. A test calls it before anything else.
    fn all() -> Self {
        SAID.clone()
    }

    /// The lines that have all these parts.
    fn lines(&self, parts: &[&str]) -> Vec<String> {
        let said = String::from_utf8(self.0.lock().expect("unpoisoned").clone()).expect("text");
        said.lines().filter(|line| parts.iter().all(|part| line.contains(part))).map(str::to_owned).collect()
    }

    fn has(&self, parts: &[&str]) -> bool {
        !self.lines(parts).is_empty()
    }
}
