"""Host-side decisions shared by the torch and the ONNX engine; numpy only, without torch."""
