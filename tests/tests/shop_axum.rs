//! Every scenario, through the axum shop, on every store.

larder_tests::shop_tests!(env!("CARGO_BIN_EXE_shop-axum"));
