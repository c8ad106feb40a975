//! Runs a template: expressions.

use super::ast::{Comparison, Const, Expr};
use super::limits::{Kind, MAX_TEXT_BYTES, Outcome, type_error};
use super::operators::{self, undefined_error};
use super::printing::write_str;
use super::render::Renderer;
use super::value::{Str, Undefined, Val};
use super::{checks, methods};

impl<'t> Renderer<'t, '_> {
    /// The value of an expression.
    pub(super) fn eval(&mut self, expr: &'t Expr) -> Outcome<Val<'t>> {
        match expr {
            Expr::Const(value) => {
                self.meter.steps(1)?;
                return Ok(constant(value));
            }
            Expr::Name(name) => {
                self.meter.steps(1)?;
                return Ok(self.variable(name));
            }
            _ => {}
        }
        self.meter.enter()?;
        let value = self.compound(expr);
        self.meter.leave();
        value
    }

    fn compound(&mut self, expr: &'t Expr) -> Outcome<Val<'t>> {
        match expr {
            Expr::Const(_) | Expr::Name(_) => unreachable!("`eval` takes them"),
            Expr::Tuple(items) => Val::tuple(self.all(items)?),
            Expr::List(items) => Val::list(self.all(items)?),
            Expr::Dict(entries) => {
                let mut values = Vec::with_capacity(entries.len());
                for (key, value) in entries {
                    values.push((self.eval(key)?, self.eval(value)?));
                }
                Val::dict(values, self.meter)
            }
            Expr::Condition { .. } | Expr::And(_) | Expr::Or(_) | Expr::Not(_) => self.logic(expr),
            Expr::Negative(inner) => operators::negative(&self.eval(inner)?, -1),
            Expr::Positive(inner) => operators::negative(&self.eval(inner)?, 1),
            Expr::Binary(operator, pair) => {
                let (left, right) = (self.eval(&pair.0)?, self.eval(&pair.1)?);
                operators::binary(*operator, &left, &right, self.meter)
            }
            Expr::Concat(parts) => {
                let mut text = String::new();
                for part in parts {
                    let value = self.eval(part)?;
                    write_str(&mut text, &value, self.meter)?;
                }
                Ok(Val::text(text))
            }
            Expr::Compare(first, operands) => self.comparison(first, operands),
            Expr::Attribute(of, name) => {
                let value = self.eval(of)?;
                self.attribute(&value, Str::Borrowed(name))
            }
            Expr::Item(pair) => self.item_expr(&pair.0, &pair.1),
            Expr::Slice(_) => type_error("a slice stands in a subscript"),
            Expr::Call(call) => {
                let function = self.eval(&call.function)?;
                let arguments = self.arguments(&call.arguments)?;
                self.call(&function, arguments)
            }
            Expr::Filter(applied) => {
                let value = match &applied.value {
                    Some(value) => self.eval(value)?,
                    None => unreachable!("only filters of blocks have none"),
                };
                let arguments = self.arguments(&applied.arguments)?;
                self.filter(&applied.name, value, arguments)
            }
            Expr::Test(applied) => {
                let value = match &applied.value {
                    Some(value) => self.eval(value)?,
                    None => unreachable!("a test has a value"),
                };
                let arguments = self.arguments(&applied.arguments)?;
                checks::check(&applied.name, &value, arguments, self.meter).map(Val::Bool)
            }
        }
    }

    /// What decides by truth, and computes only what it needs.
    fn logic(&mut self, expr: &'t Expr) -> Outcome<Val<'t>> {
        match expr {
            Expr::Condition { test, yes, no } => match (self.eval(test)?.is_true(), no) {
                (true, _) => self.eval(yes),
                (false, Some(no)) => self.eval(no),
                (false, None) => {
                    let hint = "the inline if-expression evaluated to false and no else section was defined";
                    Ok(Val::Undefined(Undefined::Hint(hint)))
                }
            },
            Expr::And(pair) => {
                let left = self.eval(&pair.0)?;
                if left.is_true() { self.eval(&pair.1) } else { Ok(left) }
            }
            Expr::Or(pair) => {
                let left = self.eval(&pair.0)?;
                if left.is_true() { Ok(left) } else { self.eval(&pair.1) }
            }
            Expr::Not(inner) => Ok(Val::Bool(!self.eval(inner)?.is_true())),
            other => self.eval(other),
        }
    }

    fn comparison(&mut self, first: &'t Expr, operands: &'t [(Comparison, Expr)]) -> Outcome<Val<'t>> {
        let mut left = self.eval(first)?;
        for (comparison, operand) in operands {
            let right = self.eval(operand)?;
            if !operators::compare(*comparison, &left, &right, self.meter)? {
                return Ok(Val::Bool(false));
            }
            left = right;
        }
        Ok(Val::Bool(true))
    }

    fn all(&mut self, items: &'t [Expr]) -> Outcome<Vec<Val<'t>>> {
        items.iter().map(|item| self.eval(item)).collect()
    }

    fn item_expr(&mut self, of: &'t Expr, index: &'t Expr) -> Outcome<Val<'t>> {
        let value = self.eval(of)?;
        let Expr::Slice(bounds) = index else {
            let index = self.eval(index)?;
            return self.item(&value, &index);
        };
        let mut numbers = [None, None, None];
        let mut wrong = None;
        for (number, bound) in numbers.iter_mut().zip(&**bounds) {
            let Some(bound) = bound else { continue };
            let bound = self.eval(bound)?;
            match bound {
                Val::None => {}
                bound => match bound.as_int() {
                    Some(int) => *number = Some(int),
                    None => wrong = Some(bound),
                },
            }
        }
        if let Val::Undefined(undefined) = &value {
            return undefined_error(undefined);
        }
        if let Some(wrong) = wrong {
            return type_error(format!("slice indices must be integers or None, not {}", wrong.type_name()));
        }
        operators::slice(&value, numbers, self.meter)
    }

    /// `value.name`, as the sandbox of Jinja2 finds it: an attribute of Python first, then an item.
    pub(super) fn attribute(&mut self, value: &Val<'t>, name: Str<'t>) -> Outcome<Val<'t>> {
        match value {
            Val::Undefined(undefined) => return undefined_error(undefined),
            Val::Dict(dict) if !methods::of_dict(&name) => {
                if let Some(found) = dict.get_text(&name) {
                    return Ok(found.clone());
                }
            }
            _ => {}
        }
        if let Some(found) = self.python_attribute(value, &name)? {
            return Ok(found);
        }
        if let Val::Dict(dict) = value
            && let Some(found) = dict.get_text(&name)
        {
            return Ok(found.clone());
        }
        Ok(Val::Undefined(Undefined::Attribute(value.type_name(), name)))
    }

    /// `value[index]`: an item first, then an attribute of Python.
    pub(super) fn item(&mut self, value: &Val<'t>, index: &Val<'t>) -> Outcome<Val<'t>> {
        self.meter.steps(1)?;
        if let Some(found) = self.python_item(value, index)? {
            return Ok(found);
        }
        let name = match index {
            Val::Str(name) | Val::Markup(name) => name.clone(),
            _ => return Ok(Val::Undefined(Undefined::Hint("the value has no such element"))),
        };
        match self.python_attribute(value, &name)? {
            Some(found) => Ok(found),
            None => Ok(Val::Undefined(Undefined::Attribute(value.type_name(), name))),
        }
    }

    /// `value[index]` of Python; `None` where it raises a `TypeError` or a `LookupError`.
    fn python_item(&mut self, value: &Val<'t>, index: &Val<'t>) -> Outcome<Option<Val<'t>>> {
        let place = |length: usize| {
            let length = i128::try_from(length).expect("a length fits 128 bits");
            let index = index.as_int()?;
            let place = if index < 0 { index.checked_add(length)? } else { index };
            usize::try_from(place).ok().filter(|_| place < length)
        };
        Ok(match value {
            Val::Undefined(undefined) => return undefined_error(undefined),
            Val::Dict(dict) => match index {
                Val::Str(key) | Val::Markup(key) => dict.get_text(key).cloned(),
                Val::Undefined(_) => None,
                key => match key.check_hashable(self.meter) {
                    Ok(()) => dict.get(key).cloned(),
                    Err(failure) if failure.kind() == Kind::Type => None,
                    Err(failure) => return Err(failure),
                },
            },
            Val::List(seq) | Val::Tuple(seq) => place(seq.items.len()).map(|place| seq.items[place].clone()),
            Val::Str(text) | Val::Markup(text) => {
                if index.as_int().is_none() {
                    return Ok(None);
                }
                self.meter.text(text.len())?;
                let at = |place: usize| text.char_indices().nth(place);
                let found = place(text.chars().count()).and_then(at);
                found.map(|(at, character)| Val::Str(operators::part(text, at..at + character.len_utf8())))
            }
            Val::Range(steps) => {
                let length = usize::try_from(steps.len()).unwrap_or(MAX_TEXT_BYTES);
                let number = |place: usize| i128::try_from(place).expect("a place fits 128 bits");
                place(length).map(|place| Val::Int(steps.start + number(place) * steps.step))
            }
            _ => None,
        })
    }
}

fn constant(value: &Const) -> Val<'_> {
    match value {
        Const::None => Val::None,
        Const::Bool(value) => Val::Bool(*value),
        Const::Int(value) => Val::Int(*value),
        Const::Float(value) => Val::Float(*value),
        Const::Text(text) => Val::borrowed(text),
    }
}
