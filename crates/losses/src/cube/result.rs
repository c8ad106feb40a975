//! From the words of the kernel to labels.

use super::layout::{HEADER, Layout, WRITTEN};
use crate::labels::HeadOptions;
use crate::select::{Keep, RowLabels, by_count, by_log_prob, narrow, shares};

/// Why a row has no labels.
#[derive(Debug, PartialEq)]
pub(super) enum Fault {
    /// It is no distribution.
    NonFinite,
    /// These are not a kernel's words: it did not run, and nobody said so.
    NotWritten,
}

/// The labels of a row.
pub(super) fn labels(words: &[i32], layout: Layout, options: &HeadOptions<'_>) -> Result<RowLabels, Fault> {
    let float = |at: usize| f32::from_bits(words[at].cast_unsigned());
    let wide = |at: usize| f64::from(float(at));
    let count = |at: usize, most| {
        usize::try_from(words[at]).ok().filter(|&count| count <= most).ok_or(Fault::NotWritten)
    };
    let (kept, drawn) = (count(7, layout.kept)?, count(8, layout.drawn)?);
    let (largest, total) = (wide(1), wide(2));
    if words[0] < WRITTEN {
        return Err(Fault::NotWritten);
    }
    if words[0] > WRITTEN || !(total > 0.0 && total.is_finite()) {
        return Err(Fault::NonFinite);
    }
    let log_total = total.ln();
    let log_prob = |logit: f32| narrow(f64::from(logit) - largest - log_total);

    let ids = HEADER + layout.temperatures;
    let mut kept: Vec<Entry> = (ids..ids + kept)
        .map(|at| (log_prob(float(at + layout.kept)), [words[at], words[at + layout.kept]]))
        .collect();
    kept.sort_unstable_by(by_log_prob);
    let (mut tail, mut cut) = (Vec::new(), Vec::new());
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
            cut = kept.split_off(last + 1);
            tail.extend(cut.iter().map(|&(log_prob, _)| f64::from(log_prob)));
        }
    }
    // Without exact tokens all are the rest, and the words of the tail are those of the tokens that were not drawn.
    let of_rest = if layout.kept == 0 { largest } else { wide(4) };
    let softened: Vec<[f64; 2]> = (HEADER..)
        .zip(options.temperatures)
        .map(|(at, &temperature)| {
            let rest = [of_rest, wide(at)];
            at_temperature([&kept, &cut], rest, largest, f64::from(temperature))
        })
        .collect();
    let ids = ids + 2 * layout.kept;
    let mut drawn: Vec<(i32, i32)> =
        (ids..ids + drawn).map(|at| (words[at + layout.drawn], words[at])).collect();
    drawn.sort_unstable_by(by_count);
    Ok(RowLabels {
        token_ids: kept.iter().map(|&(_, [id, _])| id).chain(drawn.iter().map(|&(_, id)| id)).collect(),
        log_probs: kept.iter().map(|&(log_prob, _)| log_prob).collect(),
        sample_counts: drawn.iter().map(|&(count, _)| count).collect(),
        log_sum_exp: (largest + log_total) as f32,
        tail_log_mass: (log_sum(&tail) as f32).min(0.0),
        entropy: (log_total - wide(3) / total).max(0.0) as f32,
        gold_log_prob: if float(6) == f32::NEG_INFINITY { float(6) } else { log_prob(float(6)) },
        log_partitions: softened.iter().map(|&[partition, _]| partition as f32).collect(),
        tail_log_masses: softened
            .iter()
            .filter(|_| layout.kept > 0)
            .map(|&[_, tail]| (tail as f32).min(0.0))
            .collect(),
    })
}

/// Log probability, and the words of a token and of its logit.
type Entry = (f32, [i32; 2]);

/// log Σ exp(z / T), and the log of the share beyond the kept tokens: of these, of those that were cut of them, and of the largest
/// logit and the sum of the others.
fn at_temperature(
    [kept, cut]: [&[Entry]; 2],
    [of_rest, sum]: [f64; 2],
    largest: f64,
    temperature: f64,
) -> [f64; 2] {
    let relative = |logit: f64| (logit - largest) / temperature;
    let of_entry = |&(_, [_, word]): &Entry| relative(f64::from(f32::from_bits(word.cast_unsigned())));
    let mut rest: Vec<f64> = cut.iter().map(of_entry).collect();
    if sum > 0.0 {
        rest.push(relative(of_rest) + sum.ln());
    }
    let kept = kept.iter().map(|one| of_entry(one).exp()).sum();
    let [log_total, tail] = shares(kept, log_sum(&rest));
    [largest / temperature + log_total, tail]
}

/// log Σ exp over numbers that may be far below 0; -inf of none.
fn log_sum(logs: &[f64]) -> f64 {
    let largest = logs.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if largest == f64::NEG_INFINITY {
        return largest;
    }
    largest + logs.iter().map(|log| (log - largest).exp()).sum::<f64>().ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_that_no_kernel_wrote_are_no_labels() {
        let options =
            HeadOptions { keep: Keep::TopK { k: 2 }, logit_scale: 1.0, temperatures: &[], rows_per_chunk: 1 };
        let layout = Layout::of(&options, 10);
        let fault = |words: &[i32]| labels(words, layout, &options).err();
        let bits = |number: f32| number.to_bits().cast_signed();
        // Largest 1, Σ exp = 2 of two tokens that are kept, 0.0 of the tail.
        let mut words = [
            WRITTEN,
            bits(1.0),
            bits(2.0),
            0,
            bits(f32::NEG_INFINITY),
            0,
            bits(1.0),
            2,
            0,
            7,
            3,
            bits(1.0),
            bits(1.0),
        ];
        assert_eq!(fault(&words), None);
        for (place, word) in [(0, 0), (0, -5), (7, 3), (7, -1), (8, 1)] {
            let mut other = words;
            other[place] = word;
            assert_eq!(fault(&other), Some(Fault::NotWritten), "word {place}: {word}");
        }
        assert_eq!(fault(&vec![0; layout.words()]), Some(Fault::NotWritten), "memory as a system gives it");
        words[0] = WRITTEN + 1;
        assert_eq!(fault(&words), Some(Fault::NonFinite));
    }
}
