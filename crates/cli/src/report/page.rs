//! The page of `softshard report --html`: curves of all trainings, and tables of what came out.

use std::path::Path;

use super::{
    Compared,
    curve::{Axes, Curve, plot, smoothed},
    training::Training,
};
use crate::{
    numbers::{grouped, memory, nats, number, percent},
    page::{self, escape, figure, plot::thousands},
};

/// Colours that the style has.
const COLOURS: usize = 6;

/// The page of what lies in `output`.
pub(super) fn of(
    output: &Path,
    trainings: &[Training],
    (compared, made_from): (&[Compared], &[String]),
) -> String {
    let evaluations = compared.iter().map(|one| one.evaluations.len()).sum();
    let counts = [("training", trainings.len()), ("evaluation", evaluations)];
    let counts: Vec<String> = counts
        .iter()
        .filter(|(_, count)| *count > 0)
        .map(|(noun, count)| format!("{} {noun}{}", number(*count), if *count == 1 { "" } else { "s" }))
        .collect();
    let body = [
        trainings_table(trainings),
        held_out_table(trainings),
        compared.iter().map(evaluations_table).collect(),
        made_from.iter().map(|line| format!("<p>{}</p>\n", escape(line))).collect(),
        curves(trainings),
    ];
    let foot = "<code>tensorboard --logdir</code> with the folder of the run shows the same curves while a training runs.";
    let sentence = format!("{}.", counts.join(", "));
    page::of("Report", &escape(page::name_of(output)), &sentence, &body.concat(), foot)
}

fn class(index: usize) -> String {
    format!("c{}", index % COLOURS)
}

/// The name of a training with the colour of its curves.
fn key(index: usize, training: &Training) -> String {
    format!("<th><span class=\"key {}\"></span>{}</th>", class(index), escape(&training.name))
}

fn table(title: &str, header: &[&str], rows: &[String]) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let header: String = header.iter().map(|name| format!("<th>{name}</th>")).collect();
    format!(
        "<h2>{title}</h2>\n<div class=\"scroll\">\n<table class=\"numbers\">\n<thead><tr>{header}</tr></thead>\n\
         <tbody>\n{}</tbody>\n</table>\n</div>\n",
        rows.concat()
    )
}

fn row(first: &str, cells: &[Option<String>]) -> String {
    let cell = |cell: &Option<String>| format!("<td>{}</td>", cell.as_deref().unwrap_or("–"));
    format!("<tr>{first}{}</tr>\n", cells.iter().map(cell).collect::<String>())
}

fn trainings_table(trainings: &[Training]) -> String {
    let header = [
        "at the end, smoothed",
        "steps",
        "tokens",
        "loss",
        "cross-entropy",
        "divergence",
        "tokens/s",
        "waiting",
        "memory",
    ];
    let row_of = |(index, training): (usize, &Training)| {
        let end = |scalar: &str| smoothed(training.steps(scalar)).last().map(|(_, value)| *value);
        let tokens = training.steps("tokens").iter().map(|(_, value)| value).sum();
        let peak = training.steps("memory_bytes").iter().map(|(_, value)| *value).reduce(f64::max);
        let cells = [
            training.steps("loss").last().map(|(step, _)| grouped(*step)),
            Some(grouped(tokens)),
            end("loss").map(nats),
            end("cross_entropy").map(nats),
            end("divergence").map(nats),
            end("tokens_per_second").map(grouped),
            end("stall_share").map(percent),
            peak.map(memory),
        ];
        row(&key(index, training), &cells)
    };
    let rows: Vec<String> = trainings.iter().enumerate().map(row_of).collect();
    table("Trainings", &header, &rows)
}

/// The best and the last look of each training at held-out data.
fn held_out_table(trainings: &[Training]) -> String {
    let mut rows = Vec::new();
    for (index, training) in trainings.iter().enumerate() {
        let nll = training.held_out("nll");
        let best = nll.iter().min_by(|left, right| left.1.total_cmp(&right.1));
        let (Some((best, _)), Some((last, _))) = (best, nll.last()) else { continue };
        let mut looks = vec![(*best, "least NLL")];
        if last > best {
            looks.push((*last, "last"));
        }
        for (step, what) in looks {
            let at = |scalar: &str| {
                training.held_out(scalar).iter().find(|(found, _)| *found == step).map(|(_, value)| *value)
            };
            let cells = [
                Some(format!("{what}, step {}", grouped(step))),
                at("nll").map(nats),
                at("kl").map(nats),
                at("ece").map(percent),
                at("accuracy").map(percent),
                at("sequences").map(grouped),
            ];
            rows.push(row(&key(index, training), &cells));
        }
    }
    table(
        "Held-out data",
        &["", "", "NLL, nats", "KL to teacher, nats", "ECE", "top-1 accuracy", "sequences"],
        &rows,
    )
}

fn evaluations_table(Compared { rows: of, header, evaluations }: &Compared) -> String {
    let row_of = |cells: &Vec<String>| {
        let (name, cells) = cells.split_first().expect("a result has a name");
        let cells: Vec<Option<String>> = cells.iter().map(|cell| Some(escape(cell))).collect();
        row(&format!("<th>{}</th>", escape(name)), &cells)
    };
    let rows: Vec<String> = evaluations.iter().map(row_of).collect();
    let header: Vec<&str> = header.iter().map(String::as_str).collect();
    table(&format!("Evaluations, {}", escape(of)), &header, &rows)
}

/// A plot of the page.
struct Plot {
    title: &'static str,
    caption: &'static str,
    /// Scalar of the steps.
    steps: &'static str,
    /// Scalar of held-out data.
    points: &'static str,
    axes: Axes<'static>,
}

const NATS: Axes = Axes { unit: "nats", from_zero: false, seen: 0.95, is_exact: false, show: plain };
const MEASURED: Axes = Axes { unit: "", from_zero: true, seen: 0.995, is_exact: false, show: plain };
const SCHEDULED: Axes = Axes { seen: 1.0, is_exact: true, ..MEASURED };

const PLOTS: [Plot; 8] = [
    Plot {
        title: "Loss",
        caption: "What is minimised, a mean over labelled tokens.",
        steps: "loss",
        points: "",
        axes: NATS,
    },
    Plot {
        title: "Cross-entropy",
        caption: "Of the gold tokens. Circles: negative log-likelihood of held-out data.",
        steps: "cross_entropy",
        points: "nll",
        axes: NATS,
    },
    Plot {
        title: "Divergence from the teacher",
        caption: "The recipe’s, without its weight. Circles: forward KL on held-out data.",
        steps: "divergence",
        points: "kl",
        axes: Axes { from_zero: true, ..NATS },
    },
    Plot {
        title: "Calibration error",
        caption: "ECE of the most probable token on held-out data.",
        steps: "",
        points: "ece",
        axes: Axes {
            unit: "percent",
            show: |share, digits| plain(100.0 * share, digits.saturating_sub(2)),
            ..MEASURED
        },
    },
    Plot {
        title: "Learning rate",
        caption: "As the schedule gives it.",
        steps: "learning_rate",
        points: "",
        axes: Axes { show: scientific, ..SCHEDULED },
    },
    Plot {
        title: "Gradient norm",
        caption: "Over all that is trained, before it is clipped.",
        steps: "gradient_norm",
        points: "",
        axes: MEASURED,
    },
    Plot {
        title: "Speed",
        caption: "Tokens without padding, with the time in which the loop waited for them.",
        steps: "tokens_per_second",
        points: "",
        axes: Axes { unit: "tokens/s", show: |value, _| thousands(value), ..MEASURED },
    },
    Plot {
        title: "Alpha",
        caption: "Weight of the divergence in the loss.",
        steps: "alpha",
        points: "",
        axes: SCHEDULED,
    },
];

fn plain(value: f64, digits: usize) -> String {
    format!("{value:.digits$}")
}

fn scientific(value: f64, _: usize) -> String {
    if value == 0.0 { "0".to_owned() } else { format!("{value:.1e}").replace(".0e", "e") }
}

fn curves(trainings: &[Training]) -> String {
    let figures: String = PLOTS.iter().map(|plot| of_all(plot, trainings)).collect();
    if figures.is_empty() {
        return String::new();
    }
    format!("<h2>Curves</h2>\n<div class=\"curves\">\n{figures}</div>\n")
}

/// The trainings that have the scalar, over each other.
fn of_all(Plot { title, caption, steps, points, axes }: &Plot, trainings: &[Training]) -> String {
    let mut curves = Vec::new();
    for (index, training) in trainings.iter().enumerate() {
        let (steps, points) = (training.steps(steps), training.held_out(points));
        if !(steps.is_empty() && points.is_empty()) {
            curves.push(Curve { name: &training.name, class: class(index), steps, points });
        }
    }
    // What stays as it is needs no curve.
    let values = || curves.iter().flat_map(|curve| curve.steps).map(|(_, value)| *value);
    if *steps == "alpha" && values().all(|value| Some(value) == values().next()) {
        return String::new();
    }
    let svg = plot(&curves, axes, title);
    if svg.is_empty() { svg } else { figure("", title, caption, &svg) }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use super::*;
    use crate::report::training;

    #[test]
    fn a_page_has_tables_and_a_plot_for_each_scalar() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        for (name, divergence) in [("a<b", ""), ("student", r#""divergence":0.5,"#)] {
            let mut lines = String::new();
            for step in 1..=40 {
                let loss = 4.0 / f64::from(step) + 2.0;
                writeln!(
                    lines,
                    r#"{{"split":"train","step":{step},"loss":{loss},"cross_entropy":{loss},{divergence}"alpha":1.0,"learning_rate":1e-5,"gradient_norm":1.5,"tokens":100,"tokens_per_second":12345.6,"stall_share":0.0,"memory_bytes":3210000000}}"#
                )
                .expect("a text takes everything");
                if step % 10 == 0 {
                    let ece = 0.01 * f64::from(step);
                    writeln!(
                        lines,
                        r#"{{"split":"valid","step":{step},"nll":{ece},"kl":0.4,"ece":{ece},"accuracy":0.5,"sequences":60}}"#
                    )
                    .expect("a text takes everything");
                }
            }
            fs_err::create_dir(folder.path().join(name)).expect("a folder is made");
            fs_err::write(folder.path().join(name).join("metrics.jsonl"), lines).expect("written");
        }
        let trainings = training::all(folder.path(), &[]).expect("readable");
        let evaluation = ["student", "1000", "-", "-", "-", "2.3", "3.0 %", "0.4"].map(str::to_owned);
        let compared = Compared {
            rows: "test: 9 sequences".to_owned(),
            header: vec!["model".to_owned(); evaluation.len()],
            evaluations: vec![evaluation.to_vec()],
        };
        let page = of(folder.path(), &trainings, (&[compared], &["<b>: student".to_owned()]));
        let titles = page.matches("<figcaption><b>").count();
        assert_eq!(
            (titles, page.matches("<svg viewBox").count()),
            (7, 7),
            "all but alpha, which stays as it is"
        );
        for part in [
            "<p>2 trainings, 1 evaluation.</p>",
            "<span class=\"key c0\"></span>a&lt;b</th><td>40</td><td>4,000</td><td>2.1",
            "<td>12,346</td><td>0.00 %</td><td>3.2 GB</td>",
            "<td>least NLL, step 10</td><td>0.100</td><td>0.400</td><td>10.00 %</td><td>50.00 %</td><td>60</td>",
            "<td>last, step 40</td>",
            "<h2>Evaluations, test: 9 sequences</h2>",
            "<th>student</th><td>1000</td>",
            "student after step 10: 0.1000",
            "student after step 20: 20.00",
            "<b>Divergence from the teacher.</b>",
        ] {
            assert!(page.contains(part), "expected {part} in\n{page}");
        }
        assert!(!page.contains("a<b") && !page.contains("<script") && !page.contains("NaN"));
        let empty = of(folder.path(), &trainings[..0], (&[], &[]));
        assert!(!empty.contains("<table") && !empty.contains("<svg"));
    }
}
