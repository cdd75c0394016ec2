//! A median and how sure it is.

use std::fmt;

/// A median with a 95% interval that assumes nothing about the distribution: the values between which the median of
/// everything lies unless 19 in 20 samples fell more to one side than a fair coin does.
#[derive(Clone, Copy, Debug)]
pub struct Interval {
    /// The median.
    pub median: f64,
    /// Where the interval begins.
    pub low: f64,
    /// Where it ends.
    pub high: f64,
}

impl Interval {
    /// Of at least one value.
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
