//! Whether it is worth a round trip to look before asking for the right to fill.
//!
//! To look costs one round trip and to ask another, but who asks is answered with what is there. So where a route missed
//! again and again, as one does that was just evicted or that hardly ever sees a request twice, the look is left out until
//! something is found again. What is found then has cost a little more; nothing else depends on it.

use std::sync::atomic::{AtomicU32, Ordering};

/// How many misses in a row make the next one likely enough.
const SURE: u32 = 8;

#[derive(Debug, Default)]
pub(crate) struct MissPredictor {
    misses: AtomicU32,
}

impl MissPredictor {
    pub(crate) fn predicts_miss(&self) -> bool {
        self.misses.load(Ordering::Relaxed) >= SURE
    }

    /// Nothing was there.
    pub(crate) fn record_miss(&self) {
        if !self.predicts_miss() {
            self.misses.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Something was there, or the store can't say.
    pub(crate) fn record_hit(&self) {
        // All requests share this: it is written only to change it.
        if self.misses.load(Ordering::Relaxed) > 0 {
            self.misses.store(0, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_misses_in_a_row_foretell_another() {
        let miss_predictor = MissPredictor::default();
        for _ in 0..SURE {
            assert!(!miss_predictor.predicts_miss());
            miss_predictor.record_miss();
        }
        assert!(miss_predictor.predicts_miss());
        miss_predictor.record_hit();
        assert!(!miss_predictor.predicts_miss());
    }
}
