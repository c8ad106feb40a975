use burn::tensor::bf16;

use super::*;

/// Of a sum of products, relative to the sum of their sizes: sums by the rules of f32 have 2e-7.
const ROUNDING: f64 = 3e-7;

fn numbers(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    // Of unlike sizes.
    (0..count).map(|index| next() * [1.0, 1e-3, 30.0][index % 3]).collect()
}

/// Row `row`, column `column` of a matrix that lies by rows or by columns.
fn at(by_rows: bool, [rows, columns]: [usize; 2], row: usize, column: usize) -> usize {
    if by_rows { row * columns + column } else { column * rows + row }
}

fn view(numbers: Numbers<'_>, shape: [usize; 2], by_rows: bool) -> Matrix<'_> {
    let [rows, columns] = shape.map(|size| isize::try_from(size).unwrap());
    Matrix::new(numbers, shape, if by_rows { [columns, 1] } else { [1, rows] }).unwrap()
}

/// The largest error, relative to the sum of the sizes of the products.
fn error(
    found: &[f32],
    left: impl Fn(usize, usize) -> f64,
    right: impl Fn(usize, usize) -> f64,
    [m, k, n]: [usize; 3],
) -> f64 {
    assert_eq!(found.len(), m * n);
    let mut worst = 0.0_f64;
    for row in 0..m {
        for column in 0..n {
            let products = || (0..k).map(|index| left(row, index) * right(index, column));
            let (sum, sizes): (f64, f64) = (products().sum(), products().map(f64::abs).sum());
            worst = worst.max((f64::from(found[row * n + column]) - sum).abs() / sizes);
        }
    }
    worst
}

const SHAPES: [[usize; 3]; 9] = [
    [1, 1, 1],
    [1, 70, 100],
    [5, 3, 7],
    [33, 31, 65],
    [64, 97, 100],
    [100, 2100, 33],
    [17, 64, 48],
    [70, 768, 16],
    [256, 256, 500],
];

#[test]
fn products_are_those_of_f32() {
    if !are_there() {
        return;
    }
    for shape @ [m, k, n] in SHAPES {
        let (a, b) = (numbers(m * k, 1), numbers(k * n, 2));
        for (by_rows, right_by_rows) in [(true, true), (true, false), (false, true), (false, false)] {
            let left = view(Numbers::F32(&a), [m, k], by_rows);
            let right = view(Numbers::F32(&b), [k, n], right_by_rows);
            let found = product(&left, &right);
            let of_left = |row, column| f64::from(a[at(by_rows, [m, k], row, column)]);
            let of_right = |row, column| f64::from(b[at(right_by_rows, [k, n], row, column)]);
            let worst = error(&found, of_left, of_right, shape);
            assert!(worst < ROUNDING, "{shape:?} {by_rows} {right_by_rows}: {worst:e}");
        }
    }
}

#[test]
fn products_of_bf16_are_exact_sums() {
    if !are_there() {
        return;
    }
    let narrow = |numbers: Vec<f32>| numbers.into_iter().map(bf16::from_f32).collect::<Vec<_>>();
    for shape @ [m, k, n] in SHAPES {
        let (a, b) = (narrow(numbers(m * k, 1)), narrow(numbers(k * n, 2)));
        for (by_rows, right_by_rows) in [(true, true), (true, false), (false, true), (false, false)] {
            let left = view(Numbers::Bf16(&a), [m, k], by_rows);
            let right = view(Numbers::Bf16(&b), [k, n], right_by_rows);
            let of_left = |row, column| f64::from(a[at(by_rows, [m, k], row, column)]);
            let of_right = |row, column| f64::from(b[at(right_by_rows, [k, n], row, column)]);
            let worst = error(&product(&left, &right), of_left, of_right, shape);
            assert!(worst < ROUNDING, "{shape:?} {by_rows} {right_by_rows}: {worst:e}");
        }
    }
}

#[test]
fn a_row_has_the_same_bits_in_any_company_and_on_any_number_of_threads() {
    if !are_there() {
        return;
    }
    let [m, k, n] = [300, 800, 700];
    let (a, b) = (numbers(m * k, 1), numbers(k * n, 2));
    let right = view(Numbers::F32(&b), [k, n], false);
    let on = |threads: usize, rows: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| product(&view(Numbers::F32(&a[..rows * k]), [rows, k], true), &right))
    };
    let alone = on(1, m);
    for (threads, rows) in [(2, m), (4, m), (1, 17), (3, 40)] {
        assert_eq!(on(threads, rows), alone[..rows * n], "{threads} threads, {rows} rows");
    }
}

#[test]
fn what_is_no_number_is_found_in_the_product() {
    if !are_there() {
        return;
    }
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let (mut a, b) = (numbers(40 * 50, 1), numbers(50 * 60, 2));
        a[3 * 50 + 7] = bad;
        let found = product(&view(Numbers::F32(&a), [40, 50], true), &view(Numbers::F32(&b), [50, 60], true));
        let finite = |row: usize| found[row * 60..][..60].iter().all(|number| number.is_finite());
        assert!((0..40).all(|row| finite(row) == (row != 3)));
    }
}

#[test]
fn a_product_is_added_to_what_is_there() {
    if !are_there() {
        return;
    }
    let [m, k, n] = [50, 800, 70];
    let (a, b) = (numbers(m * k, 1), numbers(k * n, 2));
    let (left, right) = (view(Numbers::F32(&a), [m, k], false), view(Numbers::F32(&b), [k, n], true));
    let mut sum = numbers(m * n, 3);
    let expected: Vec<f32> =
        sum.iter().zip(product(&left, &right)).map(|(sum, product)| sum + product).collect();
    add_product(&mut sum, &left, &right);
    for (found, expected) in sum.into_iter().zip(expected) {
        assert!((found - expected).abs() <= 1e-5 * expected.abs().max(1000.0), "{found} for {expected}");
    }
}
