//! What Python's `iter` gives.

use std::rc::Rc;

use super::limits::{Meter, Outcome, type_error};
use super::operators::part;
use super::value::{Dict, Generator, Seq, Steps, Str, Val, ViewKind};

/// Items of a value, one after the other.
#[derive(Debug)]
pub(super) struct Items<'t> {
    kind: Kind<'t>,
    at: usize,
}

#[derive(Debug)]
enum Kind<'t> {
    None,
    Seq(Rc<Seq<'t>>),
    Dict(ViewKind, Rc<Dict<'t>>),
    Range(Rc<Steps>),
    Characters(Str<'t>),
    Generator(Rc<Generator<'t>>),
}

/// The items of a value.
pub(super) fn items<'t>(value: &Val<'t>) -> Outcome<Items<'t>> {
    let kind = match value {
        Val::Undefined(_) => Kind::None,
        Val::List(seq) | Val::Tuple(seq) => Kind::Seq(seq.clone()),
        Val::Dict(dict) => Kind::Dict(ViewKind::Keys, dict.clone()),
        Val::View(kind, dict) => Kind::Dict(*kind, dict.clone()),
        Val::Range(steps) => Kind::Range(steps.clone()),
        Val::Str(text) | Val::Markup(text) => Kind::Characters(text.clone()),
        Val::Iter(generator) => Kind::Generator(generator.clone()),
        other => return type_error(format!("'{}' object is not iterable", other.type_name())),
    };
    Ok(Items { kind, at: 0 })
}

impl<'t> Items<'t> {
    pub(super) fn none() -> Self {
        Self { kind: Kind::None, at: 0 }
    }

    pub(super) fn next(&mut self, meter: &Meter) -> Outcome<Option<Val<'t>>> {
        meter.steps(1)?;
        let at = self.at;
        self.at += 1;
        Ok(match &self.kind {
            Kind::None => None,
            Kind::Seq(seq) => seq.items.get(at).cloned(),
            Kind::Dict(kind, dict) => match (kind, dict.entries.get(at)) {
                (_, None) => None,
                (ViewKind::Keys, Some((key, _))) => Some(key.clone()),
                (ViewKind::Values, Some((_, value))) => Some(value.clone()),
                (ViewKind::Items, Some((key, value))) => Some(Val::tuple(vec![key.clone(), value.clone()])?),
            },
            Kind::Range(steps) => {
                let at = i128::try_from(at).expect("a place fits 128 bits");
                (at < steps.len()).then(|| Val::Int(steps.start + at * steps.step))
            }
            Kind::Characters(text) => {
                let character = text[at..].chars().next();
                character.map(|character| {
                    self.at = at + character.len_utf8();
                    Val::Str(part(text, at..self.at))
                })
            }
            Kind::Generator(generator) => generator.rest.borrow_mut().pop_front().transpose()?,
        })
    }

    /// How many items there are in all, if that is known before they are read.
    pub(super) fn length(&self) -> Option<usize> {
        match &self.kind {
            Kind::None => Some(0),
            Kind::Seq(seq) => Some(seq.items.len()),
            Kind::Dict(_, dict) => Some(dict.entries.len()),
            Kind::Range(steps) => usize::try_from(steps.len()).ok(),
            Kind::Characters(text) => Some(text.chars().count()),
            Kind::Generator(_) => None,
        }
    }

    /// All that is left.
    pub(super) fn rest(mut self, meter: &Meter) -> Outcome<Vec<Val<'t>>> {
        let mut items = Vec::new();
        while let Some(item) = self.next(meter)? {
            items.push(item);
        }
        Ok(items)
    }
}

/// Python's `list(value)`.
pub(super) fn list<'t>(value: &Val<'t>, meter: &Meter) -> Outcome<Vec<Val<'t>>> {
    items(value)?.rest(meter)
}

/// Python's `len(value)`.
pub(super) fn length(value: &Val<'_>) -> Outcome<usize> {
    match value {
        Val::Iter(_) => type_error("object of type 'generator' has no len()"),
        other => match items(other).ok().and_then(|items| items.length()) {
            Some(length) => Ok(length),
            None => type_error(format!("object of type '{}' has no len()", other.type_name())),
        },
    }
}
