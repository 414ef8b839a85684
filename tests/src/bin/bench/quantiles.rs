//! Quantiles of samples: by linear interpolation between the two nearest ranks (R's type 7).

/// The `q`-quantile; zero if there are no samples.
pub fn quantile(samples: &[f64], q: f64) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let Some(last) = sorted.len().checked_sub(1) else {
        return 0.0;
    };
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_sign_loss,
        reason = "a rank, small and not negative"
    )]
    let (position, below) = {
        let position = last as f64 * q;
        (position, position.floor() as usize)
    };
    let fraction = position.fract();
    sorted[below] + (sorted[(below + 1).min(last)] - sorted[below]) * fraction
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_lie_between_ranks() {
        let samples = [4.0, 1.0, 3.0, 2.0];
        assert!((quantile(&samples, 0.5) - 2.5).abs() < 1e-9);
        assert!((quantile(&samples, 0.0) - 1.0).abs() < 1e-9);
        assert!((quantile(&samples, 1.0) - 4.0).abs() < 1e-9);
        assert!(quantile(&[], 0.5).abs() < 1e-9);
    }
}
