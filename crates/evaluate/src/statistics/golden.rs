//! The numbers of scipy and statsmodels (tests/peers/golden_statistics.py).

use serde_json::Value;

use super::{
    Documents, Interval, Part, Question, Resampling, compare,
    distributions::{normal_cdf, normal_quantile, t_quantile, t_two_sided},
    estimate, holm, mcnemar, sign_flip, standard_error, two_levels, wilson,
};

/// f64 all the way, in other orders of sums.
const PEERS: f64 = 1e-9;

/// What the peers computed.
pub(crate) fn golden(section: &str) -> Value {
    let path = softshard_e2e::root().join("tests/peers/golden/statistics.json");
    let text = std::fs::read_to_string(path).expect("golden/statistics.json is there");
    serde_json::from_str::<Value>(&text).expect("it is JSON")[section].take()
}

pub(crate) fn float(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("a number, not {value}"))
}

pub(crate) fn floats(value: &Value) -> Vec<f64> {
    list(value).iter().map(float).collect()
}

pub(crate) fn list(value: &Value) -> &[Value] {
    value.as_array().unwrap_or_else(|| panic!("a list, not {value}"))
}

/// Within 1e-9, of the value where that is below 1; what is 0 may be an f64's last bits of 1.
#[track_caller]
pub(crate) fn close(found: f64, expected: &Value) {
    let expected = float(expected);
    assert!(
        (found - expected).abs() <= (PEERS * expected.abs().min(1.0)).max(1e-15),
        "expected {expected:e}, found {found:e}"
    );
}

#[track_caller]
fn close_interval(found: Interval, expected: &Value) {
    close(found.lower, &expected[0]);
    close(found.upper, &expected[1]);
}

fn single(scores: &Value) -> Vec<Part> {
    floats(scores).into_iter().map(|sum| Part { sum, weight: 1.0 }).collect()
}

#[test]
fn distributions() {
    let golden = golden("distributions");
    let shares = floats(&golden["shares"]);
    for (share, quantile) in shares.iter().zip(list(&golden["normal_quantiles"])) {
        close(normal_quantile(*share), quantile);
    }
    for (x, cdf) in floats(&golden["normal_at"]).into_iter().zip(list(&golden["normal_cdfs"])) {
        close(normal_cdf(x), cdf);
    }
    for (index, freedom) in floats(&golden["degrees_of_freedom"]).into_iter().enumerate() {
        for (share, quantile) in shares.iter().zip(list(&golden["t_quantiles"][index])) {
            close(t_quantile(*share, freedom), quantile);
        }
        for (x, p) in floats(&golden["t_at"]).into_iter().zip(list(&golden["t_two_sided"][index])) {
            close(t_two_sided(x, freedom), p);
        }
    }
}

#[test]
fn errors_clustered_by_document() {
    let golden = golden("clusters");
    let keys: Vec<u64> = list(&golden["documents"]).iter().map(|key| key.as_u64().unwrap()).collect();
    let documents = Documents::of(&keys);
    let [baseline, candidate] = ["baseline", "candidate"].map(|name| floats(&golden[name]));
    let parts = |scores: &[f64]| documents.parts(scores).unwrap();
    let few = Resampling { draws: 20, ..Resampling::default() };
    for (scores, name) in [(&baseline, "of_baseline"), (&candidate, "of_candidate")] {
        let found = estimate(&parts(scores), &few).unwrap();
        close(found.value, &golden[name]["mean"]);
        close(found.standard_error, &golden[name]["standard_error"]);
    }
    let question = Question { resampling: few, ..Question::default() };
    let found = compare(&parts(&baseline), &parts(&candidate), &question).unwrap();
    close(found.difference, &golden["of_difference"]["mean"]);
    close(found.standard_error, &golden["of_difference"]["standard_error"]);
    close(found.smallest_difference.unwrap(), &golden["smallest_difference"]);
    // Rows as if they were independent: the sample's deviation and correlation.
    let rows = Documents::of_single_rows(keys.len());
    let (from, to) = (rows.parts(&baseline).unwrap(), rows.parts(&candidate).unwrap());
    close(standard_error(&from).unwrap(), &golden["single_rows_standard_error"]);
    let found = compare(&from, &to, &question).unwrap();
    close(found.correlation.unwrap(), &golden["single_rows_correlation"]);
}

#[test]
fn intervals_of_replicates() {
    let golden = golden("bootstrap");
    let (replicates, estimate) = (floats(&golden["replicates"]), float(&golden["estimate"]));
    for case in list(&golden["cases"]) {
        let documents = usize::try_from(case["documents"].as_u64().unwrap()).unwrap();
        let resampling = Resampling { level: float(&case["level"]), ..Resampling::default() };
        close(resampling.tail(documents), &case["tail"]);
        close_interval(resampling.percentile(replicates.clone(), documents), &case["percentile"]);
        close_interval(resampling.basic(estimate, replicates.clone(), documents), &case["basic"]);
    }
}

#[test]
fn exact_sign_flips() {
    for case in list(&golden("sign_flip")) {
        let (baseline, candidate) = (single(&case["baseline"]), single(&case["candidate"]));
        let found = sign_flip(&baseline, &candidate, &Resampling::default()).unwrap();
        close(found.p, &case["p"]);
        assert!(found.exact);
    }
}

#[test]
fn counts() {
    for case in list(&golden("wilson")) {
        let count = |name: &str| case[name].as_u64().unwrap();
        let found = wilson(count("successes"), count("trials"), float(&case["level"])).unwrap();
        close_interval(found, &case["interval"]);
    }
    for case in list(&golden("mcnemar")) {
        let count = |name: &str| case[name].as_u64().unwrap();
        close(mcnemar(count("only_baseline"), count("only_candidate")), &case["p"]);
    }
    let table = golden("holm");
    let found = holm(&floats(&table["p_values"])).unwrap();
    found.iter().zip(list(&table["adjusted"])).for_each(|(found, expected)| close(*found, expected));
}

#[test]
fn seeds_and_documents() {
    for case in list(&golden("two_levels")) {
        let seeds = |name: &str| -> Vec<Vec<Part>> { list(&case[name]).iter().map(single).collect() };
        let found = two_levels(&seeds("baseline"), &seeds("candidate"), 0.95).unwrap();
        close(found.difference, &case["difference"]);
        close(found.standard_error, &case["standard_error"]);
        close(found.degrees_of_freedom, &case["degrees_of_freedom"]);
        close(found.of_seeds, &case["of_seeds"]);
        close(found.p.unwrap(), &case["p"]);
        close_interval(found.interval, &case["interval"]);
    }
}
