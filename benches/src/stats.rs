//! Medians with confidence intervals.

use std::fmt;

/// A median with a 95% interval that assumes nothing about the distribution. The interval is the range between two of the sorted
/// samples, such that a fair coin would put more samples on one side in fewer than 1 of 20 cases.
#[derive(Clone, Copy, Debug)]
pub struct Interval {
    /// The median.
    pub median: f64,
    /// The lower end of the interval.
    pub low: f64,
    /// The upper end of the interval.
    pub high: f64,
}

impl Interval {
    /// Computes the median of at least one value.
    #[must_use]
    pub fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let count = values.len();
        let margin = 1.96 * (count as f64).sqrt() / 2.0;
        let low = (count as f64 / 2.0 - margin).floor().max(0.0) as usize;
        Self { median: values[count / 2], low: values[low], high: values[count - 1 - low] }
    }
}

impl fmt::Display for Interval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.3} ({:.3} to {:.3})", self.median, self.low, self.high)
    }
}
