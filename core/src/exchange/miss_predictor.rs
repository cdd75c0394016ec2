//! A predictor of misses, so that routes that rarely hit skip the GET before taking a lease.
//!
//! A GET costs one round trip, and a lease another. But a store returns an existing entry in answer to a request for a
//! lease. After several misses in a row, as after an eviction or on a route that rarely sees a request twice, the GET is
//! skipped until an entry is found again. Such a hit costs slightly more. Nothing else depends on the prediction.

use std::sync::atomic::{AtomicU32, Ordering};

/// The number of consecutive misses after which another miss is predicted.
const MISSES_TO_PREDICT: u32 = 8;

#[derive(Debug, Default)]
pub(crate) struct MissPredictor {
    misses: AtomicU32,
}

impl MissPredictor {
    pub(crate) fn predicts_miss(&self) -> bool {
        self.misses.load(Ordering::Relaxed) >= MISSES_TO_PREDICT
    }

    /// Records a miss.
    pub(crate) fn record_miss(&self) {
        if !self.predicts_miss() {
            self.misses.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Records a hit, or a failure of the store.
    pub(crate) fn record_hit(&self) {
        // All requests share this value, so it is written only when it changes.
        if self.misses.load(Ordering::Relaxed) > 0 {
            self.misses.store(0, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn consecutive_misses_predict_another() {
        let miss_predictor = MissPredictor::default();
        for _ in 0..MISSES_TO_PREDICT {
            assert!(!miss_predictor.predicts_miss());
            miss_predictor.record_miss();
        }
        assert!(miss_predictor.predicts_miss());
        miss_predictor.record_hit();
        assert!(!miss_predictor.predicts_miss());
    }
}
