use super::*;

/// Softmax and sums of f32, relative to the largest number.
const ROUNDING: f64 = 3e-6;

struct Case {
    batch: usize,
    heads: usize,
    groups: usize,
    queries: usize,
    keys: usize,
    width: usize,
    first: Vec<Vec<usize>>,
}

fn numbers(count: usize, seed: f32) -> Vec<f32> {
    (0..count).map(|index| (index as f32 * 0.37 + seed).sin() * 0.7).collect()
}

fn heads(numbers: &[f32], batch: usize, rows: usize, heads: usize, width: usize) -> Heads<'_> {
    let stride = heads * width;
    Heads {
        numbers,
        batch,
        rows,
        heads,
        width,
        stride_of_batch: rows * stride,
        stride,
        stride_of_head: width,
    }
}

/// Output, and with the gradient by it those by query, key and value, in f64.
fn expected(case: &Case, [q, k, v, d]: [&[f32]; 4]) -> [Vec<f64>; 4] {
    let Case { batch, heads, groups, queries, keys, width, first } = case;
    let (all, before) = (heads * groups, keys - queries);
    let mut found = [q.len(), q.len(), k.len(), v.len()].map(|count| vec![0.0f64; count]);
    for b in 0..*batch {
        for h in 0..all {
            for t in 0..*queries {
                let at = |t: usize, e: usize| ((b * queries + t) * all + h) * width + e;
                let key_at = |s: usize, e: usize| ((b * keys + s) * heads + h / groups) * width + e;
                let seen = first[if first.len() == 1 { 0 } else { b }][t]..before + t + 1;
                let dot = |x: &[f32], y: &[f32], s: usize| -> f64 {
                    (0..*width).map(|e| f64::from(x[at(t, e)]) * f64::from(y[key_at(s, e)])).sum()
                };
                let scores: Vec<f64> = seen.clone().map(|s| dot(q, k, s)).collect();
                let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let sum: f64 = scores.iter().map(|x| (x - largest).exp()).sum();
                let p: Vec<f64> = scores.iter().map(|x| (x - largest).exp() / sum).collect();
                let d_p: Vec<f64> = seen.clone().map(|s| dot(d, v, s)).collect();
                let mean: f64 = p.iter().zip(&d_p).map(|(p, d)| p * d).sum();
                for ((s, p), d_p) in seen.zip(p).zip(d_p) {
                    let d_score = p * (d_p - mean);
                    for e in 0..*width {
                        found[0][at(t, e)] += p * f64::from(v[key_at(s, e)]);
                        found[1][at(t, e)] += d_score * f64::from(k[key_at(s, e)]);
                        found[2][key_at(s, e)] += d_score * f64::from(q[at(t, e)]);
                        found[3][key_at(s, e)] += p * f64::from(d[at(t, e)]);
                    }
                }
            }
        }
    }
    found
}

fn assert_near(found: &[f32], expected: &[f64], what: &str) {
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(1.0f64, |largest, x| largest.max(x.abs()));
    for (index, (&found, &expected)) in found.iter().zip(expected).enumerate() {
        let off = (f64::from(found) - expected).abs();
        assert!(off <= ROUNDING * largest, "{what} {index}: {found} for {expected}");
    }
}

#[test]
fn a_head_is_that_of_a_plain_loop() {
    if !super::super::are_there() {
        return;
    }
    let causal = |queries: usize| vec![vec![0; queries]];
    let window = |queries: usize, keys: usize, window: usize| {
        vec![(0..queries).map(|query| (keys - queries + query + 1).saturating_sub(window)).collect()]
    };
    let packed: Vec<usize> = (0..70)
        .map(|query| {
            if query < 33 {
                0
            } else if query < 34 {
                33
            } else {
                34
            }
        })
        .collect();
    let padded = vec![vec![0; 40], (0..40).map(|column: usize| column.min(37)).collect()];
    let shapes = [
        (1, 1, 1, 1, 1, 32, causal(1)),
        (2, 3, 2, 40, 40, 64, padded),
        (1, 2, 1, 33, 50, 20, causal(33)),
        (1, 1, 3, 70, 70, 80, vec![packed]),
        (2, 2, 1, 100, 100, 128, window(100, 100, 7)),
        (1, 1, 1, 65, 200, 256, window(65, 200, 40)),
        (1, 2, 2, 1, 9, 33, causal(1)),
    ];
    for (batch, heads_of_keys, groups, queries, keys, width, first) in shapes {
        let case = Case { batch, heads: heads_of_keys, groups, queries, keys, width, first };
        let q = numbers(batch * queries * heads_of_keys * groups * width, 0.0);
        let [k, v] = [1.0, 2.0].map(|seed| numbers(batch * keys * heads_of_keys * width, seed));
        let d = numbers(q.len(), 3.0);
        let scaled: Vec<f32> = q.iter().map(|x| x / (width as f32).sqrt()).collect();
        let visible = Visible::new(keys - queries, case.first.clone());
        let query = heads(&scaled, batch, queries, heads_of_keys * groups, width);
        let [key, value] = [&k, &v].map(|of| heads(of, batch, keys, heads_of_keys, width));
        let d_output = heads(&d, batch, queries, heads_of_keys * groups, width);
        let [output, d_query, d_key, d_value] = expected(&case, [&scaled, &k, &v, &d]);
        let what = format!("{queries} queries, {keys} keys, width {width}");
        assert_near(&attend(&query, &key, &value, &visible), &output, &what);
        let found = attend_backward([&query, &key, &value, &d_output], &visible);
        assert_near(&found.query, &d_query, &format!("{what}: query"));
        assert_near(&found.key, &d_key, &format!("{what}: key"));
        assert_near(&found.value, &d_value, &format!("{what}: value"));
    }
}
