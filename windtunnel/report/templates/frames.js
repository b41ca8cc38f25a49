// Pointers and resizes may come many times a frame; each frame is drawn once.
const onceAFrame = (act) => {
  let wanted = null;
  return (...last) => {
    if (!wanted) requestAnimationFrame(() => { const given = wanted; wanted = null; act(...given); });
    wanted = last;
  };
};
