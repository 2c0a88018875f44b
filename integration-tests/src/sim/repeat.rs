//! How to repeat a simulation that failed: whatever panics while one is held, its seed is named and the command beside it.

/// Held by a simulation; speaks if that is dropped by a panic.
#[derive(Debug)]
pub(super) struct Named {
    pub(super) seed: u64,
}

impl Drop for Named {
    // For whoever reads why a test failed.
    #[allow(clippy::print_stderr)]
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", how(self.seed, std::thread::current().name()));
        }
    }
}

/// What to say; a test's thread has the name of its test.
fn how(seed: u64, thread: Option<&str>) -> String {
    let failed = format!("a simulation with the seed {seed} failed");
    match thread.filter(|name| *name != "main") {
        Some(test) => format!(
            "{failed}; to repeat it: cargo test -p integration-tests --test simulated -- --exact {test}"
        ),
        None => failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_names_its_seed_and_the_test_that_repeats_it() {
        let said = how(17, std::thread::current().name());
        assert!(said.contains("seed 17"), "{said}");
        assert!(
            said.ends_with(
                "--exact sim::repeat::tests::a_failure_names_its_seed_and_the_test_that_repeats_it"
            ),
            "{said}"
        );
        assert!(how(17, Some("main")).contains("seed 17"));
    }
}
