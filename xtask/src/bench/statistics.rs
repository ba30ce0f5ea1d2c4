//! Means and percentiles of few values.
//!
//! It never interpolates: a percentile is one of the values.

/// The arithmetic mean.
pub(super) fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// How far the mean is likely off, were the values independent: their standard deviation by the root of their number.
pub(super) fn standard_error(values: &[f64]) -> Option<f64> {
    let mean = mean(values)?;
    let others = values.len().checked_sub(1).filter(|it| *it > 0)?;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    Some((squares / others as f64 / values.len() as f64).sqrt())
}

/// The smallest value that `percent` of the values don't exceed.
pub(super) fn percentile(mut values: Vec<f64>, percent: usize) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let rank = (values.len() * percent).div_ceil(100);
    values.get(rank.checked_sub(1)?).copied()
}

/// The middle value; of two, the smaller.
pub(super) fn median(values: Vec<f64>) -> Option<f64> {
    percentile(values, 50)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_value_has_no_error() {
        assert_eq!(standard_error(&[]), None);
        assert_eq!(standard_error(&[5.0]), None);
        assert_eq!(standard_error(&[3.0, 5.0]), Some(1.0));
    }

    #[test]
    fn a_percentile_is_one_of_the_values() {
        let values: Vec<f64> = (1..=200).rev().map(f64::from).collect();
        assert_eq!(percentile(values.clone(), 99), Some(198.0));
        assert_eq!(percentile(values, 100), Some(200.0));
        assert_eq!(percentile(vec![7.0], 99), Some(7.0));
        assert_eq!(percentile(Vec::new(), 99), None);
        assert_eq!(median(vec![3.0, 9.0, 1.0]), Some(3.0));
    }
}
