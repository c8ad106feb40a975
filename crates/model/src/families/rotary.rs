//! Rotary positions, in the older style (`rope_theta` and `rope_scaling` at the top) or the newer (`rope_parameters`), as
//! transformers 5.23 standardises them (`convert_rope_params_to_dict` and `modeling_rope_utils.py`).

use serde_json::{Map, Value};

use super::keys::Keys;
use crate::Error;
use crate::config::{Family, Positions, RopeScaling};

/// The base of the angles where the file names none.
const USUAL_THETA: f64 = 10_000.0;
/// The part of each head of a GPT-NeoX that is turned where the file does not say.
const USUAL_NEOX_PART: f64 = 0.25;
const KINDS: &str = "supported: default, linear, dynamic, yarn, longrope, llama3, proportional";
/// What all kinds read.
const OF_ALL: [&str; 4] = ["rope_type", "type", "rope_theta", "partial_rotary_factor"];
/// What transformers knows beside it.
const KNOWN: [&str; 13] = [
    "factor",
    "original_max_position_embeddings",
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "short_factor",
    "long_factor",
    "low_freq_factor",
    "high_freq_factor",
    "mscale",
    "mscale_all_dim",
    "truncate",
    // Three axes of one position each, as texts have them, are one.
    "mrope_section",
];
/// Says how a model was made, nothing of what it computes.
const HISTORY: &str = "finetuned";
/// Rotary keys beside the two objects, of this family or of others that transformers reads.
const AT_TOP: [&str; 6] =
    ["rope_theta", "rope_scaling", "rope_parameters", "rotary_emb_base", "rotary_pct", "rotary_dim"];

/// The settings of one model.
struct Rotary<'a> {
    /// The whole file.
    keys: &'a Keys<'a>,
    /// The object that counts.
    settings: Keys<'a>,
    /// Its name.
    name: &'static str,
    /// The longest text that the model was made for.
    longest: usize,
    head_dim: usize,
}

/// `longest` is `max_position_embeddings`.
pub(super) fn read(
    keys: &Keys,
    family: Family,
    [head_dim, longest]: [usize; 2],
    remarks: &mut Vec<String>,
) -> Result<Positions, Error> {
    refuse_unknown(keys, "", |key| {
        let is_rotary = ["rope", "rotary", "no_rope"].iter().any(|start| key.starts_with(start));
        !is_rotary || AT_TOP.contains(&key)
    })?;
    let none = Map::new();
    let (name, map) = settings(keys, remarks)?.unwrap_or(("rope_parameters", &none));
    let rotary = Rotary { keys, settings: Keys { map, place: keys.place }, name, longest, head_dim };
    refuse_unknown(&rotary.settings, name, |key| {
        OF_ALL.contains(&key) || KNOWN.contains(&key) || key == HISTORY
    })?;
    rotary.positions(family, remarks)
}

/// A key that changes something somewhere is not passed over; `null` and `false` ask for nothing.
fn refuse_unknown(keys: &Keys, inside: &str, is_known: impl Fn(&str) -> bool) -> Result<(), Error> {
    for (key, value) in keys.map {
        if !is_known(key) && !value.is_null() && value != &Value::Bool(false) {
            let dot = if inside.is_empty() { "" } else { "." };
            return Err(keys.unsupported(format!("`{inside}{dot}{key}`"), KINDS));
        }
    }
    Ok(())
}

/// Name and content of an object in the file.
type Named<'a> = (&'static str, &'a Map<String, Value>);

/// `rope_scaling` where it says anything, else `rope_parameters`, with its name.
fn settings<'a>(keys: &Keys<'a>, remarks: &mut Vec<String>) -> Result<Option<Named<'a>>, Error> {
    let mut found = None;
    for name in ["rope_scaling", "rope_parameters"] {
        let Some(value) = keys.get(name) else { continue };
        let Some(map) = value.as_object() else {
            return Err(keys.problem(format!("`{name}`: expected an object, found {value}")));
        };
        match found {
            None if !map.is_empty() => found = Some((name, map)),
            Some((_, first)) if first != map => {
                remarks.push(format!("`{name}` is not used beside `rope_scaling`"));
            }
            _ => {}
        }
    }
    Ok(found)
}

impl Rotary<'_> {
    fn positions(&self, family: Family, remarks: &mut Vec<String>) -> Result<Positions, Error> {
        let neox = family == Family::GptNeox;
        let [theta_key, part_key] =
            if neox { ["rotary_emb_base", "rotary_pct"] } else { ["rope_theta", "partial_rotary_factor"] };
        for key in ["rotary_emb_base", "rotary_pct", "rope_theta", "partial_rotary_factor"] {
            if ![theta_key, part_key].contains(&key) && self.keys.get(key).is_some() {
                remarks
                    .push(format!("`{key}` is not used: this family reads `{theta_key}` and `{part_key}`"));
            }
        }
        let kind = self.kind()?;
        let theta = self.number("rope_theta", || self.keys.number(theta_key, USUAL_THETA))?;
        let usual_part = if neox { USUAL_NEOX_PART } else { 1.0 };
        let part = self.number("partial_rotary_factor", || self.keys.number(part_key, usual_part))?;
        let width = self.width(kind, part, neox, remarks)?;
        let (scaling, attention_factor, used) = match kind {
            "default" => (RopeScaling::None, 1.0, &[][..]),
            "linear" => (RopeScaling::Linear { factor: self.factor()? }, 1.0, &["factor"][..]),
            "dynamic" => (self.dynamic(width)?, 1.0, &["factor"][..]),
            "proportional" => (self.proportional(part)?, 1.0, &["factor"][..]),
            "llama3" => (self.llama3()?, 1.0, &KNOWN[..]),
            "yarn" => {
                let (scaling, attention_factor) = self.yarn(width)?;
                (scaling, attention_factor, &KNOWN[..])
            }
            "longrope" => {
                let (scaling, attention_factor) = self.longrope()?;
                (scaling, attention_factor, &KNOWN[..])
            }
            other => {
                let what = format!("{} of type \"{other}\"", self.name);
                return Err(self.settings.unsupported(what, KINDS));
            }
        };
        for key in KNOWN.iter().filter(|key| !used.contains(key) && self.settings.get(key).is_some()) {
            remarks.push(format!("`{}.{key}` is not used by type \"{kind}\"", self.name));
        }
        Ok(Positions::Rotary { theta, width, scaling, attention_factor })
    }

    /// The newer name of the key goes before the older; without any it is the default, whatever stands beside it.
    fn kind(&self) -> Result<&str, Error> {
        let value = self.settings.map.get("rope_type").or_else(|| self.settings.map.get("type"));
        let Some(value) = value else { return Ok("default") };
        value.as_str().ok_or_else(|| {
            self.keys.problem(format!("`{}.rope_type`: expected a name, found {value}", self.name))
        })
    }

    /// The width over which frequencies are spread. All families but GPT-NeoX turn whole heads: plain angles do not
    /// look at the part, and of all others transformers computes none that are narrower than a head.
    fn width(&self, kind: &str, part: f64, neox: bool, remarks: &mut Vec<String>) -> Result<usize, Error> {
        if kind == "proportional" || (kind == "default" && !neox) {
            if kind == "default" && part != 1.0 {
                remarks.push(format!("`partial_rotary_factor` {part} is not used: whole heads are turned"));
            }
            return Ok(self.head_dim);
        }
        // As transformers rounds it.
        let width = (self.head_dim as f64 * part) as usize;
        if !neox && 2 * width.div_ceil(2) != self.head_dim {
            let what = format!("`partial_rotary_factor` {part} with {} of type \"{kind}\"", self.name);
            return Err(self.settings.unsupported(what, "this family turns whole heads"));
        }
        Ok(width)
    }

    /// A number in the object; one that is absent, not null, may stand elsewhere.
    fn number(&self, key: &str, elsewhere: impl Fn() -> Result<f64, Error>) -> Result<f64, Error> {
        if self.settings.map.contains_key(key) { self.settings.required_number(key) } else { elsewhere() }
    }

    fn factor(&self) -> Result<f64, Error> {
        self.settings.required_number("factor")
    }

    /// The key beside the object goes before the one in it.
    fn original(&self) -> Result<usize, Error> {
        const KEY: &str = "original_max_position_embeddings";
        for keys in [self.keys, &self.settings] {
            if keys.map.contains_key(KEY) {
                let original = keys.size(KEY)?;
                return if original > 0 {
                    Ok(original)
                } else {
                    Err(keys.problem(format!("`{KEY}`: expected a positive number, found 0")))
                };
            }
        }
        Ok(self.longest)
    }

    fn dynamic(&self, width: usize) -> Result<RopeScaling, Error> {
        if width <= 2 {
            let what = format!("{} of type \"dynamic\" on {width} elements of a head", self.name);
            return Err(self.settings.unsupported(what, "it needs more than 2"));
        }
        // Of all kinds it alone goes by `max_position_embeddings`.
        Ok(RopeScaling::Dynamic { factor: self.factor()?, original: self.longest })
    }

    fn proportional(&self, part: f64) -> Result<RopeScaling, Error> {
        if !(0.0..=1.0).contains(&part) {
            return Err(self.keys.problem(format!("`partial_rotary_factor`: expected 0 to 1, found {part}")));
        }
        let pairs = (part * self.head_dim as f64 / 2.0).floor() as usize;
        Ok(RopeScaling::Proportional { factor: self.number("factor", || Ok(1.0))?, pairs })
    }

    fn llama3(&self) -> Result<RopeScaling, Error> {
        Ok(RopeScaling::Llama3 {
            factor: self.factor()?,
            low: self.settings.required_number("low_freq_factor")?,
            high: self.settings.required_number("high_freq_factor")?,
            original: self.original()?,
        })
    }

    /// With the attention factor.
    fn yarn(&self, width: usize) -> Result<(RopeScaling, f64), Error> {
        if !width.is_multiple_of(2) {
            let what = format!("{} of type \"yarn\" on {width} elements of a head", self.name);
            return Err(self.settings.unsupported(what, "it needs an even number"));
        }
        let settings = &self.settings;
        let original = self.original()?;
        // A factor that is null is the ratio of the contexts; one that is not there is an error in transformers as well.
        let is_null = settings.map.get("factor").is_some_and(Value::is_null);
        let factor = if is_null { self.longest as f64 / original as f64 } else { self.factor()? };
        let attention_factor = match settings.get("attention_factor") {
            Some(_) => settings.required_number("attention_factor")?,
            None => {
                let scale = |mscale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 };
                let [mscale, all] =
                    [settings.number("mscale", 0.0)?, settings.number("mscale_all_dim", 0.0)?];
                if mscale != 0.0 && all != 0.0 { scale(mscale) / scale(all) } else { scale(1.0) }
            }
        };
        // Zero is the same as nothing.
        let or = |key: &str, usual: f64| {
            settings.number(key, usual).map(|found| if found == 0.0 { usual } else { found })
        };
        let scaling = RopeScaling::Yarn {
            factor,
            original,
            beta_fast: or("beta_fast", 32.0)?,
            beta_slow: or("beta_slow", 1.0)?,
            // Null is false.
            truncate: settings.flag("truncate", !settings.map.contains_key("truncate"))?,
        };
        Ok((scaling, attention_factor))
    }

    /// With the attention factor, the same for short and long texts.
    fn longrope(&self) -> Result<(RopeScaling, f64), Error> {
        let original = self.original()?;
        let factor = self.settings.number("factor", self.longest as f64 / original as f64)?;
        let attention_factor = match self.settings.get("attention_factor") {
            Some(_) => self.settings.required_number("attention_factor")?,
            None if factor <= 1.0 => 1.0,
            None => (1.0 + factor.ln() / (original as f64).ln()).sqrt(),
        };
        let (short, long) = (self.settings.numbers("short_factor")?, self.settings.numbers("long_factor")?);
        Ok((RopeScaling::LongRope { short, long, original }, attention_factor))
    }
}
