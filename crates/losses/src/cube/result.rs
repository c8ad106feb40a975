//! From the words of the kernel to labels.

use super::layout::{HEADER, Layout};
use crate::labels::HeadOptions;
use crate::select::{Keep, RowLabels, by_count, by_log_prob, narrow};

/// The labels of a row; `None` if it is no distribution.
pub(super) fn labels(words: &[i32], layout: Layout, options: &HeadOptions<'_>) -> Option<RowLabels> {
    let float = |at: usize| f32::from_bits(words[at].cast_unsigned());
    let wide = |at: usize| f64::from(float(at));
    let count = |at: usize| usize::try_from(words[at]).expect("the kernel counts from 0");
    let (largest, total) = (wide(1), wide(2));
    if words[0] != 0 || !(total > 0.0 && total.is_finite()) {
        return None;
    }
    let log_total = total.ln();
    let log_prob = |logit: f32| narrow(f64::from(logit) - largest - log_total);

    let ids = HEADER + layout.temperatures;
    let mut kept: Vec<(f32, i32)> =
        (ids..ids + count(7)).map(|at| (log_prob(float(at + layout.kept)), words[at])).collect();
    kept.sort_unstable_by(by_log_prob);
    let mut tail = Vec::new();
    if wide(5) > 0.0 {
        tail.push(wide(4) - largest - log_total + wide(5).ln());
    }
    if let Keep::TopP { p, .. } = options.keep {
        let mut reached = 0.0;
        let enough = kept.iter().position(|&(log_prob, _)| {
            reached += f64::from(log_prob).exp();
            reached >= p
        });
        if let Some(last) = enough {
            tail.extend(kept.drain(last + 1..).map(|(log_prob, _)| f64::from(log_prob)));
        }
    }
    let ids = ids + 2 * layout.kept;
    let mut drawn: Vec<(i32, i32)> =
        (ids..ids + count(8)).map(|at| (words[at + layout.drawn], words[at])).collect();
    drawn.sort_unstable_by(by_count);
    Some(RowLabels {
        token_ids: kept.iter().map(|&(_, id)| id).chain(drawn.iter().map(|&(_, id)| id)).collect(),
        log_probs: kept.iter().map(|&(log_prob, _)| log_prob).collect(),
        sample_counts: drawn.iter().map(|&(count, _)| count).collect(),
        log_sum_exp: (largest + log_total) as f32,
        tail_log_mass: (log_sum(&tail) as f32).min(0.0),
        entropy: (log_total - wide(3) / total).max(0.0) as f32,
        gold_log_prob: if float(6) == f32::NEG_INFINITY { float(6) } else { log_prob(float(6)) },
        log_partitions: (HEADER..)
            .zip(options.temperatures)
            .map(|(at, &temperature)| (largest / f64::from(temperature) + wide(at).ln()) as f32)
            .collect(),
    })
}

/// log Σ exp over numbers that may be far below 0; -inf of none.
fn log_sum(logs: &[f64]) -> f64 {
    let largest = logs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if largest == f64::NEG_INFINITY {
        return largest;
    }
    largest + logs.iter().map(|log| (log - largest).exp()).sum::<f64>().ln()
}
