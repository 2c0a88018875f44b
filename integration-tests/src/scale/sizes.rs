//! How much is simulated, and which two sizes of each thing are compared.

/// How much is simulated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Instances, each under a lease of its own; alike in all services. 1 to 10 million, at least one a service.
    pub instances: u32,
    /// Watchers, each with a stream of its own; alike over all services. 1 to 1 million.
    pub watchers: u32,
    /// Services. At least ten.
    pub services: u32,
    /// Changes that the recent log keeps; twice as many happen before anything is measured. 1 to 1 million.
    pub history: u32,
    /// The services that costs are measured on, the first ones.
    pub measured: u32,
    /// The services that are not measured have a tenth of their instances.
    pub others_small: bool,
}

/// Sizes that cannot be simulated.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} must be {least} to {most}, and is {is}")]
pub struct WrongSize {
    what: &'static str,
    least: u32,
    most: u32,
    is: u32,
}

/// What is compared: its name, and its sizes.
pub type Case = (&'static str, Sizes);

impl Sizes {
    /// Sizes within their bounds. Costs are measured on a tenth of the services, in every case the same ones.
    pub fn new(instances: u32, watchers: u32, services: u32, history: u32) -> Result<Self, WrongSize> {
        let checked = |what, is: u32, least, most| {
            if (least..=most).contains(&is) { Ok(is) } else { Err(WrongSize { what, least, most, is }) }
        };
        let services = checked("services", services, 10, 1_000_000)? / 10 * 10;
        Ok(Self {
            instances: checked("instances", instances, services, 10_000_000)?,
            watchers: checked("watchers", watchers, services, 1_000_000)?,
            services,
            history: checked("history", history, 10, 1_000_000)?,
            measured: services / 10,
            others_small: false,
        })
    }

    /// The whole, and with a tenth of one thing each. What is measured has the same size in all of them.
    pub fn cases(&self) -> [Case; 4] {
        let tenth = Self {
            instances: self.instances / 10,
            watchers: self.watchers / 10,
            services: self.services / 10,
            ..*self
        };
        [
            ("the whole", *self),
            ("a tenth of the services", tenth),
            ("a tenth of the instances in other services", Self { others_small: true, ..*self }),
            ("a tenth of the history", Self { history: self.history / 10, ..*self }),
        ]
    }

    /// Instances of each measured service.
    pub(super) fn each(&self) -> u32 {
        (self.instances / self.services).max(1)
    }

    /// Instances of each other service.
    fn each_other(&self) -> u32 {
        if self.others_small { (self.each() / 10).max(1) } else { self.each() }
    }

    /// Instances of the measured services: the first ones.
    pub(super) fn in_measured(&self) -> u32 {
        self.measured * self.each()
    }

    /// All instances.
    pub(super) fn all(&self) -> u32 {
        self.in_measured() + (self.services - self.measured) * self.each_other()
    }

    /// The service of an instance.
    pub(super) fn service_of(&self, instance: u32) -> u32 {
        match instance.checked_sub(self.in_measured()) {
            None => instance / self.each(),
            Some(beyond) => self.measured + beyond / self.each_other(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_case_measures_services_of_one_size() {
        let whole = Sizes::new(10_000, 1_000, 100, 500).expect("within bounds");
        for (name, sizes) in whole.cases() {
            assert_eq!((sizes.measured, sizes.each()), (10, 100), "{name}");
            let last = sizes.all() - 1;
            assert_eq!(sizes.service_of(last), sizes.services - 1, "{name}");
            assert_eq!(sizes.service_of(sizes.in_measured() - 1), sizes.measured - 1, "{name}");
            assert_eq!(sizes.watchers / sizes.services, 10, "{name}");
        }
        let [_, (_, tenth), (_, small), _] = whole.cases();
        assert_eq!((tenth.all(), small.all()), (1_000, 1_000 + 90 * 10));
    }

    #[test]
    fn sizes_out_of_bounds_are_named() {
        let refused = Sizes::new(50, 1_000, 100, 500).expect_err("fewer instances than services");
        assert_eq!(refused.to_string(), "instances must be 100 to 10000000, and is 50");
        assert!(Sizes::new(10_000, 1_000, 9, 500).is_err() && Sizes::new(10_000, 99, 100, 500).is_err());
    }
}
