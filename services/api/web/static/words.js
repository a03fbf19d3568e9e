// What the page says, in Chinese and English.

const ZH = {
  skip: "跳到输入框", sessions: "会话列表", newSession: "新会话", model: "模型", conversation: "对话",
  language: "Switch to English", languageShort: "EN", theme: "深色或浅色",
  welcome: "您好，想了解什么？", welcomeText: "MedThink 会先展示思考过程，再给出回答。紧急情况请直接拨打 120。",
  question: "请输入健康问题…", think: "先思考再回答", send: "发送", stop: "停止",
  aiLabel: "AI 生成，仅供参考，不能替代医生", demo: "演示模型：只展示系统如何工作，内容不是医学建议。",
  thinking: "正在思考…", waiting: "正在等待回答…", thoughtFor: (s) => `已思考 ${s} 秒`, thought: "思考过程", cut: "（思考达到上限，已提前作答）",
  urgent: "紧急提示", blocked: "安全审查已替换这条回答", stopped: "已停止，回答不完整，不会计入后续对话", broken: "回答中断了，不完整",
  copy: "复制回答", copied: "已复制", copyFailed: "无法复制，请手动选择文字", retry: "重新回答", you: "您", assistant: "MedThink",
  remove: (t) => `删除会话：${t}`, removeSure: "确认删除？", untitled: "未命名会话", none: "还没有会话", noMemory: "此服务器不保存会话，刷新后对话会消失。",
  more: "更多", keyTitle: "需要 API 密钥", keyText: "请输入此服务器的 API 密钥。它只保存在当前标签页中。", key: "API 密钥", keySave: "继续", cancel: "取消",
  reconnecting: "连接中断，正在重连…", loading: "模型正在启动…", restored: "连接已恢复", answered: "回答完毕",
  errorTitle: "没有得到回答", offline: "无法连接服务器。恢复后点“重新回答”即可继续。", missing: "这个会话不存在或已过期，已开始新会话。",
  steps: {
    invalid_api_key: "请检查 API 密钥后重试。", server_overloaded: "服务器正忙，请稍后重试。", engine_unavailable: "模型正在启动或恢复，请稍候再试。",
    shutting_down: "服务器正在重启，请几秒后重试。", context_length_exceeded: "内容过长：请缩短问题，或开始新会话。", model_not_found: "请在右上角换一个模型。",
    session_busy: "上一个回答还在进行，请稍后重试。", session_not_found: "请开始新会话。", request_too_large: "内容过长，请缩短问题。",
    memory_unavailable: "会话存储暂时不可用，请稍后重试。", other: "请重试；如果仍然失败，请把请求编号告诉管理员。",
  },
  requestId: "请求编号", keyNeeded: "需要有效的 API 密钥",
  examples: ["左心室EF值35%是什么意思？", "空腹血糖8.2mmol/L，是否需要调整胰岛素剂量？", "痛经怎么缓解？", "68岁女性突发右侧肢体无力、言语不清2小时，请分析"],
};

const EN = {
  skip: "Skip to the question", sessions: "Sessions", newSession: "New session", model: "Model", conversation: "Conversation",
  language: "切换到中文", languageShort: "中", theme: "Dark or light",
  welcome: "What would you like to know?", welcomeText: "MedThink shows how it thinks, then answers. In an emergency call your emergency number.",
  question: "Ask a health question…", think: "Think first", send: "Send", stop: "Stop",
  aiLabel: "Written by AI, for reference only, no substitute for a doctor", demo: "Demo model: it shows how the system works. Nothing it says is medical advice.",
  thinking: "Thinking…", waiting: "Waiting for the answer…", thoughtFor: (s) => `Thought for ${s} s`, thought: "Thought", cut: " (limit reached, answered early)",
  urgent: "Urgent", blocked: "The safety check replaced this answer", stopped: "Stopped: incomplete, and left out of what follows", broken: "The answer broke off and is incomplete",
  copy: "Copy answer", copied: "Copied", copyFailed: "Could not copy: please select the text", retry: "Answer again", you: "You", assistant: "MedThink",
  remove: (t) => `Delete session: ${t}`, removeSure: "Delete?", untitled: "Untitled session", none: "No sessions yet", noMemory: "This server keeps no sessions: a reload loses the conversation.",
  more: "More", keyTitle: "An API key is needed", keyText: "Enter this server's API key. It is kept in this tab only.", key: "API key", keySave: "Continue", cancel: "Cancel",
  reconnecting: "Connection lost, reconnecting…", loading: "The model is starting…", restored: "Connected again", answered: "Answer complete",
  errorTitle: "No answer", offline: "The server cannot be reached. Once it is back, press “Answer again”.", missing: "This session does not exist or has expired; a new one was begun.",
  steps: {
    invalid_api_key: "Check the API key and try again.", server_overloaded: "The server is busy: try again in a moment.", engine_unavailable: "The model is starting or recovering: try again shortly.",
    shutting_down: "The server is restarting: try again in a few seconds.", context_length_exceeded: "Too long: shorten the question or begin a new session.", model_not_found: "Choose another model at the top.",
    session_busy: "The previous answer is still being written: try again shortly.", session_not_found: "Begin a new session.", request_too_large: "Too long: shorten the question.",
    memory_unavailable: "The session store is unavailable: try again shortly.", other: "Try again; if it fails again, give the request id to your administrator.",
  },
  requestId: "Request id", keyNeeded: "A valid API key is needed",
  examples: ["What can I do at home for a common cold?", "My 68-year-old mother with hypertension suddenly has arm weakness and slurred speech. What should I do?"],
};

/** Kept settings; a browser that forbids storage forgets them. */
export const kept = {
  get(name) { try { return localStorage.getItem(`medthink.${name}`); } catch { return null; } },
  set(name, value) { try { localStorage.setItem(`medthink.${name}`, value); } catch { /* forgotten */ } },
};

let language = kept.get("language") ?? (navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en");

/** A text by name; functions among them take what they are about. */
export function say(name, ...about) {
  const text = (language === "zh" ? ZH : EN)[name];
  return typeof text === "function" ? text(...about) : text;
}

export function switchLanguage() {
  language = language === "zh" ? "en" : "zh";
  kept.set("language", language);
  translate();
}

/** Puts every text of the page into the language. Elements name theirs in data-text, data-label, data-placeholder. */
export function translate(root = document) {
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  const about = (node) => (node.dataset.about === undefined ? [] : [node.dataset.about]);
  for (const node of root.querySelectorAll("[data-text]")) node.textContent = say(node.dataset.text, ...about(node));
  for (const node of root.querySelectorAll("[data-placeholder]")) node.placeholder = say(node.dataset.placeholder);
  for (const node of root.querySelectorAll("[data-label]")) {
    const text = say(node.dataset.label, ...about(node));
    node.setAttribute("aria-label", text);
    if (node.matches("button")) node.title = text;
  }
}

/** Gives an element one of the texts, kept right when the language changes. */
export function label(node, name, about) {
  node.dataset.text = name;
  if (about === undefined) delete node.dataset.about;
  else node.dataset.about = about;
  node.textContent = say(name, ...(about === undefined ? [] : [about]));
  return node;
}
