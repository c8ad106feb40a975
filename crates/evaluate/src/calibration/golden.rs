//! The numbers of relplot and scikit-learn (tests/peers/golden_statistics.py).

use super::{FullCalibration, Positions, report, smooth_error, smooth_error_at};
use crate::statistics::{
    Documents, Resampling,
    golden::{close, float, floats, golden, list},
    number,
};

#[test]
fn errors_of_confidences() {
    let few = Resampling { draws: 10, ..Resampling::default() };
    for case in list(&golden("calibration")) {
        let (confidences, correct): (Vec<f64>, Vec<bool>) = match case["rule"].as_u64() {
            None => {
                let correct = list(&case["correct"]).iter().map(|y| y == 1).collect();
                (floats(&case["confidences"]), correct)
            }
            // f = (i + .5) / n, right where (7919 · i mod n) / n < f.
            Some(n) => {
                let n = usize::try_from(n).unwrap();
                let f = (0..n).map(|i| (number(i) + 0.5) / number(n));
                (
                    f.clone().collect(),
                    f.enumerate().map(|(i, f)| number(7919 * i % n) / number(n) < f).collect(),
                )
            }
        };
        let found = smooth_error(&confidences, &correct).unwrap();
        close(found.error, &case["smooth"]);
        close(found.bandwidth, &case["bandwidth"]);
        for at in list(&case["at"]) {
            close(smooth_error_at(&confidences, &correct, float(&at[0])).unwrap(), &at[1]);
        }
        if case["rule"].is_u64() {
            continue;
        }
        let rows = Documents::of_single_rows(correct.len());
        let positions = Positions::new(&rows, &confidences, &correct, &vec![1.0; correct.len()]).unwrap();
        let found = report(&positions, &few).unwrap();
        close(found.brier.value, &case["brier"]);
        close(found.ece.value, &case["ece"]);
        if !case["ece_equal_mass"].is_null() {
            close(found.ece_equal_mass.value, &case["ece_equal_mass"]);
        }
    }
}

#[test]
fn errors_of_all_probabilities() {
    let golden = golden("full_calibration");
    let index = |value: &serde_json::Value| usize::try_from(value.as_u64().unwrap()).unwrap();
    let sequences: Vec<usize> = list(&golden["sequences"]).iter().map(index).collect();
    let mut full = FullCalibration::new(12);
    let (mut confidences, mut correct, mut nll) = (Vec::new(), Vec::new(), Vec::new());
    for (position, probabilities) in list(&golden["probabilities"]).iter().enumerate() {
        let (wide, came) = (floats(probabilities), index(&golden["came"][position]));
        #[expect(clippy::cast_possible_truncation, reason = "they are f32")]
        let narrow: Vec<f32> = wide.iter().map(|&p| p as f32).collect();
        full.add(sequences[position], &narrow, came).unwrap();
        let confidence = wide.iter().copied().fold(0.0, f64::max);
        confidences.push(confidence);
        correct.push(wide[came] == confidence);
        nll.push(-wide[came].ln());
    }
    let usual = Resampling { draws: 200, ..Resampling::default() };
    close(full.full_ece(&usual).unwrap().value, &golden["full_ece"]);
    close(full.brier(&usual).unwrap().value, &golden["brier"]);
    let positions = Positions::new(&Documents::of(&sequences), &confidences, &correct, &nll).unwrap();
    close(report(&positions, &usual).unwrap().nll.value, &golden["nll"]);
}
