// SPDX-License-Identifier: BSD-2-Clause

//! The power management timer: its count and its saved state.

use proptest::prelude::*;

use super::*;

proptest! {
    /// The model: the number of whole ticks of 1199 units since the timer was made, restores included.
    #[test]
    fn counts_whole_ticks(start in 0..1i64 << 40, steps in proptest::collection::vec((0..1i64 << 34, any::<bool>()), 1..50)) {
        let mut timer = Vpmtmr::new(Sbt(start));
        let mut now = start;
        for (step, restore) in steps {
            now += step;
            prop_assert_eq!(timer.read(Sbt(now)), ((now - start) as u128 / 1199) as u32);
            if restore {
                let (blob, extras) = (timer.save(Sbt(now)), timer.save_extras(Sbt(now)));
                timer = Vpmtmr::restore(Sbt(now), &blob)?;
                timer.restore_extras(Sbt(now), &extras)?;
            }
        }
    }
}
