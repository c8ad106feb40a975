//! A scorer: opened from a folder, asked for scores.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use burn::tensor::Device;

use crate::config::Config;
use crate::modernbert::ModernBert;
use crate::network::Network;
use crate::roberta::{ALIGN_SCORE, CLASSIFIER, Roberta};
use crate::rules::{MINI_CHECK_END, Pair, Plan, Planned, Rule, Verdict};
use crate::t5::{T5, Task};
use crate::tokenizer::{Cuts, TextTokenizer};
use crate::{Error, Kind};

/// Tokens that LettuceDetect and MiniCheck's T5 read, whatever their configuration allows.
const LETTUCE_DETECT_TOKENS: usize = 4096;
const MINI_CHECK_T5_TOKENS: usize = 2048;
/// The tokens of MiniCheck's T5 that mean no and yes.
const MINI_CHECK_ANSWERS: [usize; 2] = [3, 209];

/// What is known of a scorer's folder beside what is in it.
#[derive(Debug, Clone, Default)]
pub struct OpenOptions {
    /// Whose rules to use; absent: those that the architecture says, if it does.
    pub kind: Option<Kind>,
    /// The folder with its `tokenizer.json`; absent: its own.
    pub tokenizer: Option<PathBuf>,
}

/// An encoder with a scorer's rules.
pub struct Scorer {
    kind: Kind,
    network: Network,
    tokenizer: TextTokenizer,
    limit: usize,
    supported: usize,
    device: Device,
}

/// The kind that an architecture stands for, or the kinds of which it may be.
fn recognised(folder: &Path, config: &Config, asked: Option<Kind>) -> Result<Kind, Error> {
    const ENCODERS: [(&str, &[Kind]); 6] = [
        ("ModernBertForTokenClassification", &[Kind::LettuceDetect]),
        ("ModernBertForSequenceClassification", &[Kind::Nli]),
        ("HHEMv2ForSequenceClassification", &[Kind::Hhem]),
        ("T5ForTokenClassification", &[Kind::Hhem]),
        ("T5ForConditionalGeneration", &[Kind::MiniCheck]),
        ("RobertaForSequenceClassification", &[Kind::MiniCheck, Kind::FactKb, Kind::Nli]),
    ];
    // AlignScore's file has the state of a class that `transformers` does not know, beside the configuration of its RoBERTa.
    if asked == Some(Kind::AlignScore) {
        return Ok(Kind::AlignScore);
    }
    let name = config.architecture()?;
    let place = format!("`{}`: architecture `{name}`", folder.display());
    let Some((_, kinds)) = ENCODERS.iter().find(|(encoder, _)| *encoder == name) else {
        let expected = format!("one of {}", ENCODERS.map(|(encoder, _)| encoder).join(", "));
        let found = if name.ends_with("ForCausalLM") { "a decoder" } else { "another" };
        return Err(Error::bad(place, expected, found).hint(
            "a decoder is a scorer as `--kind judge`, AlignScore's weights beside a configuration of RoBERTa as `--kind align-score`",
        ));
    };
    let names = kinds.iter().map(|kind| kind.name()).collect::<Vec<_>>().join(", ");
    match (asked, kinds) {
        (Some(kind), kinds) if kinds.contains(&kind) => Ok(kind),
        (Some(kind), _) => {
            Err(Error::bad(place, format!("a scorer of kind {kind}"), format!("one of {names}")))
        }
        (None, [kind]) => Ok(*kind),
        (None, _) => Err(Error::bad(place, format!("a kind: {names}"), "none").hint(
            "several scorers have this architecture, and the file does not say which it is: `--kind` does",
        )),
    }
}

/// A classifier of as many classes as its kind has, and the class that is supported.
fn classes(config: &Config, kind: Kind) -> Result<(usize, usize), Error> {
    let classes = config.classes()?;
    let expected = match kind {
        Kind::AlignScore => return Ok((3, 0)),
        Kind::Nli => {
            let entailment = config.class("entailment").filter(|class| *class < classes);
            return entailment.map(|class| (classes, class)).ok_or_else(|| {
                let found = config.value("id2label").map_or("nothing".to_owned(), ToString::to_string);
                config.bad("id2label", "a class called `entailment`", found)
            });
        }
        _ => 2,
    };
    if classes == expected {
        return Ok((classes, 1));
    }
    Err(config.bad("id2label", format!("{expected} classes, as {kind} has"), classes))
}

impl Scorer {
    /// Reads a Hugging Face model folder in 32-bit floats. Memory: its weights.
    ///
    /// # Errors
    /// The architecture is none of a scorer, or that of several and no kind is given; a file is missing or torn; tensors do not fit;
    /// the tokenizer is missing or that of another model.
    pub fn open(folder: &Path, options: &OpenOptions, device: &Device) -> Result<Self, Error> {
        let config = Config::read(folder)?;
        let kind = recognised(folder, &config, options.kind)?;
        let (classes, supported) = classes(&config, kind)?;
        let architecture = config.architecture().unwrap_or_default();
        let network = match kind {
            Kind::Hhem => Network::T5(T5::load(folder, &config, Task::FirstToken, device)?),
            Kind::MiniCheck if architecture.starts_with("T5") => {
                Network::T5(T5::load(folder, &config, Task::FirstStep(MINI_CHECK_ANSWERS), device)?)
            }
            Kind::AlignScore => {
                Network::Roberta(Roberta::load(folder, &config, ALIGN_SCORE, classes, device)?)
            }
            _ if architecture.starts_with("ModernBert") => {
                let of_tokens = kind == Kind::LettuceDetect;
                Network::ModernBert(ModernBert::load(folder, &config, of_tokens, device)?)
            }
            _ => Network::Roberta(Roberta::load(folder, &config, CLASSIFIER, classes, device)?),
        };
        let rule = match kind {
            Kind::LettuceDetect => Some(LETTUCE_DETECT_TOKENS),
            Kind::MiniCheck if architecture.starts_with("T5") => Some(MINI_CHECK_T5_TOKENS),
            _ => None,
        };
        let limit = [network.limit(), rule].into_iter().flatten().min();
        let cuts = if kind == Kind::FactKb { Cuts::Longest } else { Cuts::First };
        let tokenizer = options.tokenizer.as_deref().unwrap_or(folder);
        let tokenizer = TextTokenizer::load(tokenizer, limit, cuts, network.vocabulary())?;
        if kind == Kind::MiniCheck && !tokenizer.has(MINI_CHECK_END) {
            let place = format!("`{}`", tokenizer.file().display());
            return Err(Error::bad(place, format!("a token `{MINI_CHECK_END}`"), "none")
                .hint("this is the tokenizer of another model"));
        }
        let device = device.clone().without_autodiff();
        Ok(Self { kind, network, tokenizer, limit: limit.unwrap_or(usize::MAX), supported, device })
    }

    /// Whose rules it has.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// A verdict of each pair, the same in any company but for the rounding of 32-bit sums.
    ///
    /// # Errors
    /// A document is empty, or a question is asked of a scorer that reads none; the tokenizer refuses a text; the weights give no
    /// numbers; the device has no memory for a single text; somebody asked for a stop.
    pub fn score(&self, pairs: &[Pair<'_>], stop: &AtomicBool) -> Result<Vec<Verdict>, Error> {
        let rule = self.rule();
        let plans = pairs.iter().enumerate().map(|(index, pair)| {
            check(index, pair, self.kind)?;
            rule.plan(pair)
        });
        let plans = plans.collect::<Result<Vec<_>, Error>>()?;
        let planned = plans.iter().filter_map(|plan| match plan {
            Planned::Texts(plan) => Some(plan),
            Planned::Empty | Planned::TooLong => None,
        });
        let texts: Vec<&[u32]> =
            planned.flat_map(|Plan { texts, .. }| texts.iter().map(|text| text.ids.as_slice())).collect();
        let found = self.network.probabilities(&texts, &self.device, stop)?;
        let mut rest = found.as_slice();
        let verdict = |planned: &Planned| match planned {
            Planned::Empty => Verdict::Empty,
            Planned::TooLong => Verdict::TooLong,
            Planned::Texts(plan) => {
                let (own, later) = rest.split_at(plan.texts.len());
                rest = later;
                Verdict::Scored(rule.score(plan, own))
            }
        };
        Ok(plans.iter().map(verdict).collect())
    }

    fn rule(&self) -> Rule<'_> {
        Rule {
            kind: self.kind,
            tokenizer: &self.tokenizer,
            limit: self.limit,
            is_t5: matches!(self.network, Network::T5(_)),
            supported: self.supported,
        }
    }
}

/// Refuses what no scorer, or not this one, reads.
pub(crate) fn check(index: usize, pair: &Pair<'_>, kind: Kind) -> Result<(), Error> {
    let place = format!("pair {}", index + 1);
    if pair.document.trim().is_empty() {
        return Err(Error::bad(format!("{place}: document"), "text", "none"));
    }
    if pair.question.is_some() && kind != Kind::LettuceDetect {
        let found = format!("one, and a scorer of kind {kind}");
        return Err(Error::bad(format!("{place}: question"), "none, or lettuce-detect", found).hint(
            "only lettuce-detect was trained with questions: leave it out, or name it in the document",
        ));
    }
    Ok(())
}
