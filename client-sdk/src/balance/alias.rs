//! Drawing an index with a probability in proportion to its weight, in constant time.
//!
//! M. D. Vose, *A Linear Algorithm For Generating Random Numbers With a Given Distribution* (1991). Every index gets a
//! column of equal height; whatever a light one leaves free is filled with a part of one heavy one, its alias. A draw is
//! a column and a height in it: two look-ups, however many there are. All arithmetic is in integers, so no weight is lost
//! to rounding.

/// A table to draw from.
#[derive(Debug)]
pub(super) struct AliasTable(Box<[Column]>);

#[derive(Clone, Copy, Debug)]
struct Column {
    /// Heights below it are the column's own index, others its alias.
    own: u64,
    alias: u32,
}

impl AliasTable {
    /// A table over weights. With no weight above 0 nothing can be drawn from it.
    pub(super) fn new(weights: impl ExactSizeIterator<Item = u32> + Clone) -> Self {
        Self(columns(weights))
    }

    /// The index that a random number stands for.
    #[inline]
    pub(super) fn draw(&self, random: u64) -> Option<usize> {
        // Lemire's multiplication instead of a division: the high half is the column, the low half the height in it.
        let drawn = u128::from(random) * self.0.len() as u128;
        #[allow(clippy::cast_possible_truncation)] // both halves, on purpose
        let (index, height) = ((drawn >> 64) as usize, drawn as u64);
        self.0.get(index).map(|column| select(height < column.own, index, column.alias as usize))
    }
}

/// One of two numbers, without a branch: which one is as random as can be, and a branch guessed wrong costs more than a
/// whole draw.
#[inline]
pub(super) fn select(condition: bool, yes: usize, no: usize) -> usize {
    no ^ ((no ^ yes) & usize::from(condition).wrapping_neg())
}

fn columns(weights: impl ExactSizeIterator<Item = u32> + Clone) -> Box<[Column]> {
    let total: u128 = weights.clone().map(u128::from).sum();
    if total == 0 {
        return Box::default();
    }
    // In units of which a column holds `total`: then a weight fills `weight · count` of them.
    let count = weights.len() as u128;
    let mut filled: Vec<u128> = weights.map(|weight| u128::from(weight) * count).collect();
    let mut columns: Vec<Column> =
        (0_u32..).zip(&filled).map(|(index, _)| Column { own: u64::MAX, alias: index }).collect();
    let (mut light, mut heavy): (Vec<usize>, Vec<usize>) =
        (0..filled.len()).partition(|i| filled[*i] < total);
    while let (Some(small), Some(large)) = (light.pop(), heavy.last().copied()) {
        // Below 2^64: a light column is filled with less than `total`.
        let own = u64::try_from((filled[small] << 64) / total).unwrap_or(u64::MAX);
        columns[small] = Column { own, alias: u32::try_from(large).unwrap_or(u32::MAX) };
        filled[large] -= total - filled[small];
        if filled[large] < total {
            heavy.pop();
            light.push(large);
        }
    }
    columns.into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_columns_hold_exactly_the_weights(
            weights in prop::collection::vec(prop_oneof![0_u32..10, any::<u32>(), Just(u32::MAX)], 1..100),
        ) {
            let total: u128 = weights.iter().map(|w| u128::from(*w)).sum();
            prop_assume!(total > 0);
            let columns = columns(weights.iter().copied());
            let mut share = vec![0_u128; weights.len()];
            for (index, column) in columns.iter().enumerate() {
                share[index] += u128::from(column.own);
                share[column.alias as usize] += (1 << 64) - u128::from(column.own);
            }
            for (index, weight) in weights.iter().enumerate() {
                let expected = (u128::from(*weight) * weights.len() as u128 * (1 << 50) / total) << 14;
                // Each column is rounded by one unit in 2^64 at most.
                prop_assert!(share[index].abs_diff(expected) <= (1 << 14) + weights.len() as u128 + 1);
                prop_assert!(*weight > 0 || share[index] == 0, "a weight of 0 has a share of {}", share[index]);
            }
        }
    }
}
