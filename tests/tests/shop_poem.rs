//! Every scenario, through the poem shop, on every store.

larder_tests::shop_tests!(env!("CARGO_BIN_EXE_shop-poem"));
