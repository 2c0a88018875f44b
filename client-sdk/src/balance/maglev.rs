//! A table of instances: a key goes to its place in the table; few keys move when an instance comes or goes, and all
//! instances have the same share almost exactly.
//!
//! D. E. Eisenbud et al., *Maglev: A Fast and Reliable Software Network Load Balancer* (NSDI 2016), section 3.4. Each
//! instance walks the table in an order of its own, given by two hashes of its id; they take turns to take their next free
//! place, in proportion to their weights. The table's size is a prime above 100 times the number of instances (up to
//! 50,000 of them), so that shares differ by little more than 1%.
//!
//! `jump` has what happens when an instance did not take a request, `bounded` the same policy with bounded load.

use std::sync::Arc;

use xxhash_rust::xxh64::xxh64;

use super::{
    Bounded, Connects, LoadFactorError, Pick, PickContext, PickError, Picker, Places, Policy, jump,
    spread::scale,
};
use crate::model::{Instance, InstanceList};

const DEFAULT_SIZE: u32 = 65_537;
/// Places for each instance at least.
const PER_INSTANCE: u32 = 100;
/// No larger table is built.
const MAX_SIZE: u32 = 5_000_011;
const FREE: u32 = u32::MAX;

/// Chooses by the request's hash key, by a look-up in a table.
///
/// With [`PickContext::attempt`] above 0 the key goes on to another instance, for each attempt to one that those before did
/// not go to.
#[derive(Clone, Copy, Debug)]
pub struct Maglev {
    size: u32,
}

/// Chooses for [`Maglev`].
#[derive(Debug)]
pub struct MaglevPicker {
    instances: InstanceList,
    table: Box<[u32]>,
}

/// Why a table of that size cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a Maglev table of {size} places cannot be: {problem}; 65537 is a good size")]
pub struct TableSizeError {
    size: u32,
    problem: &'static str,
}

/// An instance's walk through the table.
struct Walk {
    instance: u32,
    next: u64,
    skip: u64,
    /// How many places it is due, in units of the greatest weight.
    due: f64,
    share: f64,
}

impl Maglev {
    /// A table of 65,537 places; from 656 instances on of twice as many, and so on: each time that it doubles, most keys
    /// move. Always more than 100 times the number of instances, up to 50,000 of them.
    ///
    /// The paper's rule is the next prime above 100 times their number. That follows every change of the number, and most
    /// keys move with each; so here it doubles. An instance whose weight is below a hundredth of the mean may get no place.
    pub fn new() -> Self {
        Self { size: DEFAULT_SIZE }
    }

    /// A table of this size at least. It must be a prime, at most 5,000,011; it doubles, to the next prime, as often as the
    /// instances need it.
    pub fn with_table_size(size: u32) -> Result<Self, TableSizeError> {
        match size {
            _ if size > MAX_SIZE => Err(TableSizeError { size, problem: "it is more than 5000011" }),
            _ if !is_prime(size) => Err(TableSizeError { size, problem: "it is not a prime" }),
            _ => Ok(Self { size }),
        }
    }

    /// The same with bounded load: no instance gets more than 1.25 times the mean for its weight.
    pub fn bounded(self) -> Bounded<Self> {
        Bounded::new(self)
    }

    /// The same with the load bounded to `factor` times the mean, a number above 1.
    pub fn bounded_by(self, factor: f64) -> Result<Bounded<Self>, LoadFactorError> {
        Bounded::by(self, factor)
    }
}

impl Default for Maglev {
    fn default() -> Self {
        Self::new()
    }
}

impl Policy for Maglev {
    type Picker = MaglevPicker;

    fn connects(&self) -> Connects {
        Connects::OnDemand
    }

    fn build(&self, instances: &InstanceList) -> MaglevPicker {
        let size = size_for(instances.len(), self.size);
        MaglevPicker { instances: Arc::clone(instances), table: fill(instances, size) }
    }
}

impl Picker for MaglevPicker {
    #[inline]
    fn pick(&self, context: &PickContext) -> Result<Pick<'_>, PickError> {
        jump::pick(self, context)
    }
}

impl Places for MaglevPicker {
    #[inline]
    fn instances(&self) -> &[Arc<Instance>] {
        &self.instances
    }

    #[inline]
    fn owner(&self, place: u64) -> Option<usize> {
        self.table.get(scale(place, self.table.len() as u64)).map(|index| *index as usize)
    }
}

fn fill(instances: &InstanceList, size: u32) -> Box<[u32]> {
    let greatest = instances.iter().map(|instance| instance.weight).max().unwrap_or(0);
    if greatest == 0 {
        return Box::default();
    }
    let places = u64::from(size);
    let mut walks: Vec<Walk> = (0_u32..)
        .zip(instances.iter())
        .filter(|(_, instance)| instance.weight > 0)
        .map(|(number, instance)| Walk {
            instance: number,
            next: xxh64(instance.id.as_bytes(), 1) % places,
            skip: xxh64(instance.id.as_bytes(), 2) % (places - 1) + 1,
            due: 0.0,
            share: f64::from(instance.weight) / f64::from(greatest),
        })
        .collect();
    // Who walks first must not depend on the order of the list.
    walks.sort_by(|a, b| {
        let id = |walk: &Walk| instances.get(walk.instance as usize).map(|instance| &*instance.id);
        id(a).cmp(&id(b))
    });
    let mut table = vec![FREE; size as usize];
    let mut taken = 0;
    while taken < table.len() {
        for walk in &mut walks {
            walk.due += walk.share;
            if walk.due < 1.0 {
                continue;
            }
            walk.due -= 1.0;
            if let Some(place) = walk.next_free(&table, places) {
                table[place] = walk.instance;
                taken += 1;
            }
            if taken == table.len() {
                break;
            }
        }
    }
    table.into()
}

impl Walk {
    /// The next place of the walk that nobody has taken. The size is a prime, so the walk comes to every place.
    fn next_free(&mut self, table: &[u32], places: u64) -> Option<usize> {
        for _ in 0..places {
            let place = usize::try_from(self.next).ok()?;
            self.next = (self.next + self.skip) % places;
            if table.get(place) == Some(&FREE) {
                return Some(place);
            }
        }
        None
    }
}

/// The least size on the way from `least`, doubled again and again to the next prime, with places enough. A table of another
/// size moves nearly every key, so that must not happen with every instance that comes.
fn size_for(instances: usize, least: u32) -> u32 {
    let needed = u32::try_from(instances).unwrap_or(u32::MAX).saturating_mul(PER_INSTANCE);
    let mut size = least;
    while size <= needed && size < MAX_SIZE {
        size = next_prime((size - 1).saturating_mul(2).max(size + 1));
    }
    size
}

fn is_prime(number: u32) -> bool {
    number >= 2 && (2..=number.isqrt()).all(|divisor| !number.is_multiple_of(divisor))
}

fn next_prime(from: u32) -> u32 {
    (from..=MAX_SIZE).find(|number| is_prime(*number)).unwrap_or(MAX_SIZE)
}

#[cfg(test)]
mod tests;
