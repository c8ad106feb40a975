//! What the loss costs beside its matrix products: `cargo run --example loss_speed [rows D V k chunk]`.

use std::time::Instant;

use burn::tensor::{Device, Distribution, Tensor};
use softshard_losses::{DistillLoss, HeadOptions, Keep, Targets, label_rows};

fn fastest(mut run: impl FnMut()) -> f64 {
    let mut once = || {
        let began = Instant::now();
        run();
        began.elapsed().as_secs_f64()
    };
    (0..5).map(|_| once()).fold(f64::INFINITY, f64::min)
}

fn main() {
    let sizes: Vec<usize> =
        std::env::args().skip(1).map(|size| size.parse().expect("sizes are numbers")).collect();
    let [rows, width, vocabulary, k, chunk] = sizes.try_into().unwrap_or([512, 512, 32_000, 64, 128]);
    println!("[{rows}, {width}] x [{vocabulary}, {width}], k {k}, chunks of {chunk} rows");
    let report = |what: &str, seconds: f64| {
        println!("{what}: {:.0} ms, {:.0} rows/s", seconds * 1e3, rows as f64 / seconds);
    };

    let device = Device::flex();
    let random =
        |shape: [usize; 2], scale: f64| Tensor::<2>::random(shape, Distribution::Normal(0.0, scale), &device);
    let (hidden, head) = (random([rows, width], 1.0), random([vocabulary, width], 0.1));
    let products = fastest(|| {
        for start in (0..rows).step_by(chunk) {
            let hidden = hidden.clone().narrow(0, start, chunk.min(rows - start));
            let logits = hidden.matmul(head.clone().transpose());
            logits.matmul(head.clone()).into_data();
        }
    });
    report("two matrix products", products);

    let gold = vec![1; rows];
    let options =
        HeadOptions { keep: Keep::TopK { k }, logit_scale: 1.0, temperatures: &[], rows_per_chunk: chunk };
    let label =
        || label_rows(hidden.clone(), head.clone(), &gold, &[], &options).expect("finite hidden states");
    report("labels", fastest(|| drop(label())));
    let labels = label();
    let targets = Targets::of(gold, &labels);
    for (alpha, temperature) in [(0.0, 1.0), (1.0, 1.0), (1.0, 2.0)] {
        let loss = DistillLoss { temperature, ..DistillLoss::forward_kl(alpha, chunk) };
        let student = hidden.clone().autodiff().require_grad();
        let seconds = fastest(|| {
            loss.compute(student.clone(), head.clone(), &targets, rows as f64).loss.backward();
        });
        report(&format!("loss with alpha {alpha}, T {temperature}"), seconds);
    }
}
