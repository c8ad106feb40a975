//! `softshard labels inspect`: one sequence as its teacher saw it.

use std::{
    io::{IsTerminal, stdout},
    path::PathBuf,
};

use anyhow::Result;
use clap::Args;
use softshard_labels::{
    Error, LabelDataset, PositionEntries, SequenceKey, SequenceLabels, differences, visible,
};
use softshard_prepare::Tokenizer;

use crate::{recipe::local, stdout::print_painted, table::bar};

/// Arguments of `labels inspect`.
#[derive(Args)]
pub(crate) struct Inspect {
    /// Folder of the labels, which holds manifest.json
    #[arg(value_parser = local)]
    dir: PathBuf,
    /// Key of the sequence: 32 hexadecimal digits
    #[arg(long, value_name = "HEX", conflicts_with = "row")]
    key: Option<String>,
    /// Row of the sequence, over all shards
    #[arg(long, value_name = "N", default_value_t = 0)]
    row: usize,
    /// The labels' tokenizer: tokenizer.json or its folder; ids are shown without it
    #[arg(long, value_name = "PATH")]
    tokenizer: Option<PathBuf>,
    /// Alternatives shown at each position
    #[arg(long, value_name = "N", default_value_t = 4)]
    top: usize,
}

const RESET: &str = "\x1b[0m";
const DIM: &str = "\x1b[2m";
/// Cells of the bar of a probability of 1.
const BAR: u8 = 10;

/// Prints the sequence.
pub(super) fn inspect(options: &Inspect) -> Result<()> {
    let dataset = LabelDataset::open(&options.dir)?;
    let tokenizer = options.tokenizer.as_deref().map(Tokenizer::load).transpose()?;
    if let Some(tokenizer) = &tokenizer {
        check_tokenizer(&dataset, tokenizer)?;
    }
    let row = row(&dataset, options)?;
    let labels = dataset.read(row)?;
    println!(
        "row {row} of {}, key {}, {} tokens, {} labelled{}",
        dataset.len(),
        dataset.key(row),
        labels.input_ids.len(),
        labels.positions.len(),
        labels.source.as_ref().map(|source| format!(", source {source:?}")).unwrap_or_default()
    );
    let painter = Painter { tokenizer, colours: stdout().is_terminal() };
    print_painted(&format!("\n{}\n", painter.sequence(&labels)?));
    for line in painter.positions(&labels, options.top)? {
        print_painted(&line);
    }
    Ok(())
}

/// The row that was asked for.
fn row(dataset: &LabelDataset, options: &Inspect) -> Result<usize> {
    let place = format!("`{}`", options.dir.display());
    if let Some(key) = &options.key {
        let key: SequenceKey = key.parse()?;
        let found = dataset.find(&key);
        return found
            .ok_or_else(|| Error::bad(place, format_args!("labels of sequence {key}"), "none").into());
    }
    if options.row >= dataset.len() {
        let expected = format!("a row below {}", dataset.len());
        return Err(Error::bad(place, expected, options.row).into());
    }
    Ok(options.row)
}

/// Ids mean nothing in another tokenizer.
fn check_tokenizer(dataset: &LabelDataset, tokenizer: &Tokenizer) -> Result<()> {
    let expected = &dataset.manifest().plan.tokenizer;
    if tokenizer.own().has_tokens_of(expected) {
        return Ok(());
    }
    let differences = differences(expected, tokenizer.fingerprint());
    let place = format!("`{}`", tokenizer.path().display());
    let found = format!("another:\n  {}", differences.join("\n  "));
    Err(Error::bad(place, "the tokenizer of the labels", found).into())
}

/// Turns ids into text, and confidence into colour where a terminal shows it.
struct Painter {
    tokenizer: Option<Tokenizer>,
    colours: bool,
}

impl Painter {
    /// The whole sequence; labelled tokens stand on the colour of the probability that the teacher gave them.
    fn sequence(&self, labels: &SequenceLabels) -> Result<String> {
        let mut text = String::new();
        let mut labelled = labels.positions.iter().enumerate().peekable();
        for index in 0..labels.input_ids.len() {
            let previous = index.checked_sub(1).map(|before| labels.input_ids[before]);
            let piece = match self.piece(previous, labels.input_ids[index])? {
                Some(piece) => visible(&piece).into_owned(),
                None if index == 0 => labels.input_ids[index].to_string(),
                None => format!(" {}", labels.input_ids[index]),
            };
            let here = labelled.next_if(|(_, position)| usize::try_from(**position) == Ok(index));
            text += &match here.map(|(row, _)| labels.gold_log_prob.get(row)) {
                Some(Some(log_prob)) => self.on_colour(&piece, log_prob.exp()),
                // Left out of these labels.
                Some(None) => piece,
                None if self.colours => format!("{DIM}{piece}{RESET}"),
                None => piece,
            };
        }
        Ok(text)
    }

    /// A line for each labelled position: the gold token, its probability, and the alternatives.
    fn positions(&self, labels: &SequenceLabels, top: usize) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for (here, gold) in labels.entries().zip(labels.gold()) {
            let index = usize::try_from(here.position)?;
            let previous = index.checked_sub(1).map(|before| labels.input_ids[before]);
            let exact = here.log_probs.iter().map(|log_prob| format!("{:.3}", log_prob.exp()));
            let drawn = here.sample_counts.iter().map(|count| format!("×{count}"));
            let mut alternatives = Vec::new();
            for (id, weight) in
                here.token_ids.iter().zip(exact.chain(drawn)).filter(|(id, _)| **id != gold).take(top)
            {
                alternatives.push(format!("{} {weight}", self.name(previous, *id)?));
            }
            // A token that is not among the entries is one that the teacher did not think of.
            let place = here.token_ids.iter().position(|id| *id == gold);
            let rank = place.map_or("-".to_owned(), |place| rank(&here, place).to_string());
            names.push((here.position, self.name(previous, gold)?, rank, alternatives.join("  ")));
        }
        let width = names.iter().map(|(_, name, ..)| name.chars().count()).max().unwrap_or(0).max(4);
        let mut lines = vec![format!(
            "{:>8}  {:<width$}  {:>5}  {:<10}  {:>4}  {:>7}  alternatives",
            "position", "gold", "prob", "", "rank", "entropy"
        )];
        let number = |value: Option<f32>| value.map_or("-".to_owned(), |value| format!("{value:.3}"));
        for (index, (position, name, rank, alternatives)) in names.into_iter().enumerate() {
            let probability = labels.gold_log_prob.get(index).map(|log_prob| log_prob.exp());
            let padded = format!("{name:<width$}");
            let line = format!(
                "{position:>8}  {}  {:>5}  {:<10}  {rank:>4}  {:>7}  {alternatives}",
                probability
                    .map_or_else(|| padded.clone(), |probability| self.on_colour(&padded, probability)),
                number(probability),
                probability.map_or(String::new(), |probability| bar(f64::from(probability), BAR)),
                number(labels.entropy.get(index).copied()),
            );
            lines.push(line.trim_end().to_owned());
        }
        Ok(lines)
    }

    /// Text of a token behind another; `None` without a tokenizer, or where it has no text for the id.
    fn piece(&self, previous: Option<i32>, id: i32) -> Result<Option<String>> {
        let Some(tokenizer) = &self.tokenizer else { return Ok(None) };
        // Some tokenizers drop the space before the first token of a text.
        if let Some(previous) = previous {
            let (first, both) = (tokenizer.decode_all(&[previous])?, tokenizer.decode_all(&[previous, id])?);
            if let Some(piece) = both.strip_prefix(&first).filter(|piece| !piece.is_empty()) {
                return Ok(Some(piece.to_owned()));
            }
        }
        let piece = tokenizer.decode_all(&[id])?;
        Ok((!piece.is_empty()).then_some(piece))
    }

    /// A token in a list: quoted text, or its id.
    fn name(&self, previous: Option<i32>, id: i32) -> Result<String> {
        Ok(self.piece(previous, id)?.map_or_else(|| id.to_string(), |piece| format!("{piece:?}")))
    }

    /// From red (improbable) over yellow to green (certain), of the 256 colours that every terminal has.
    fn on_colour(&self, text: &str, probability: f32) -> String {
        if !self.colours {
            return text.to_owned();
        }
        let colour = match probability {
            p if p < 0.02 => 196,
            p if p < 0.1 => 208,
            p if p < 0.3 => 220,
            p if p < 0.6 => 190,
            p if p < 0.9 => 118,
            _ => 40,
        };
        // A line break would carry the background to the end of the line.
        let paint = |line: &str| match line {
            "" => String::new(),
            line => format!("\x1b[30;48;5;{colour}m{line}{RESET}"),
        };
        text.split('\n').map(paint).collect::<Vec<_>>().join("\n")
    }
}

/// Where an entry stands among the exact ones, behind those that are as probable; a drawn one, among all.
fn rank(here: &PositionEntries<'_>, place: usize) -> usize {
    match here.log_probs.get(place) {
        Some(own) => here.log_probs.iter().take_while(|log_prob| *log_prob >= own).count(),
        None => place + 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels() -> SequenceLabels {
        SequenceLabels {
            source: None,
            input_ids: vec![3, 1, 2],
            positions: vec![1, 2],
            counts: vec![2, 1],
            token_ids: vec![0, 1, 0],
            log_probs: vec![0.5f32.ln(), 0.25f32.ln(), 0.75f32.ln()],
            sample_counts: vec![],
            log_sum_exp: vec![0.0; 2],
            tail_log_mass: vec![0.25f32.ln(); 2],
            entropy: vec![1.0; 2],
            gold_log_prob: vec![0.25f32.ln(), 0.01f32.ln()],
            log_partitions: vec![],
            tail_log_masses: vec![],
        }
    }

    #[test]
    fn ids_stand_for_tokens_without_a_tokenizer() {
        let painter = Painter { tokenizer: None, colours: false };
        assert_eq!(painter.sequence(&labels()).unwrap(), "3 1 2");
        let expected = [
            "position  gold   prob              rank  entropy  alternatives",
            "       1  1     0.250  ██▌            2    1.000  0 0.500",
            "       2  2     0.010  ▏              -    1.000  0 0.750",
        ];
        assert_eq!(painter.positions(&labels(), 4).unwrap(), expected);
    }

    #[test]
    fn a_token_is_ranked_behind_those_that_are_as_probable() {
        let mut labels = labels();
        labels.log_probs[1] = labels.log_probs[0];
        labels.token_ids = vec![1, 2, 0];
        let here = labels.entries().next().unwrap();
        assert_eq!((rank(&here, 0), rank(&here, 1)), (2, 2));
    }

    #[test]
    fn confidence_is_a_colour_on_a_terminal() {
        let painter = Painter { tokenizer: None, colours: true };
        let expected = "\x1b[2m3\x1b[0m\x1b[30;48;5;220m 1\x1b[0m\x1b[30;48;5;196m 2\x1b[0m";
        assert_eq!(painter.sequence(&labels()).unwrap(), expected);
    }

    #[test]
    fn text_does_not_steer_the_terminal() {
        assert_eq!(visible("a\n\x1b[31m\u{9b}b"), "a\n\\x1b[31m\\x9bb");
    }
}
